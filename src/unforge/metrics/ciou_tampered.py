"""Cumulative IoU at 0.5 of tampered images alone: intersection and union summed over them, then divided.

Averaging: pooled; large images weigh more. Empty masks: authentic images are left out, and so are fully generated
ones, whose mask is the whole image (`ciou` counts both). Resolution: original. Source: SIDA's evaluator, which adds up
an image only where its class is tampered.
ASSUMPTION(paper): AAP says neither how its IoU is averaged nor over which images; on SID-Set its table quotes SIDA's,
whose F1 is 2 IoU / (1 + IoU) of the same number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unforge.metrics.definition import Array, Columns, Metric, divide, tampered, weighted_sums

VERSION = "1"


def counts(columns: Columns) -> npt.NDArray[np.bool_]:
    """Tampered images that have a mask predicted."""
    return ~np.isnan(tampered(columns, columns.tp))


def value(columns: Columns, weights: Array) -> Array:
    terms = (tampered(columns, term) for term in (columns.tp, columns.fp, columns.fn))
    tp, fp, fn = weighted_sums(columns, weights, *terms)
    return divide(tp, tp + fp + fn)


METRIC = Metric(id="ciou@tampered", value=value, counts=counts)
