"""Pixel F1 at 0.5 of all pixels of the tampered images thrown together: 2 tp / (2 tp + fp + fn) of the sums.

Averaging: pooled; large images weigh more. Empty masks: authentic and fully generated images are left out, as in
`ciou@tampered`, of which it is 2 IoU / (1 + IoU). Resolution: original. Source: what SIDA's and AAP's tables on SID-Set
print as F1.
"""

from __future__ import annotations

from unforge.metrics.ciou_tampered import counts
from unforge.metrics.definition import Array, Columns, Metric, divide, tampered, weighted_sums

VERSION = "1"


def value(columns: Columns, weights: Array) -> Array:
    terms = (tampered(columns, term) for term in (columns.tp, columns.fp, columns.fn))
    tp, fp, fn = weighted_sums(columns, weights, *terms)
    return divide(2 * tp, 2 * tp + fp + fn)


METRIC = Metric(id="pixel_f1_pooled@tampered", value=value, counts=counts)
