"""gIoU at 0.5 as LISA means it: the mean of the per-image IoU (not "generalised IoU").

Averaging: mean over all images. Empty masks: an empty union (authentic, and nothing predicted) is 1;
an authentic image with false positives is 0. Resolution: original. Source: LISA's and SIDA's evaluators.
"""

from __future__ import annotations

import numpy as np

from unforge.metrics.definition import Array, Columns, divide, mean

VERSION = "1"


def per_image(columns: Columns) -> Array:
    """`(n,)`, NaN where the method gave no mask."""
    union = columns.tp + columns.fp + columns.fn
    return np.where(union == 0, 1.0, divide(columns.tp, union))


METRIC = mean("giou", per_image)
