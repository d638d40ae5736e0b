"""Pixel F1 at 0.5 of all pixels of the test set thrown together: 2 tp / (2 tp + fp + fn) of the sums.

Averaging: pooled; large images weigh more. Empty masks: authentic images count, their false
positives lower the value. Resolution: original. Source: what SIDA's and AAP's tables print as F1
(every row is 2 cIoU / (1 + cIoU)).
"""

from __future__ import annotations

from unforge.metrics.definition import Array, Columns, Metric, divide, weighted_sums, with_mask

VERSION = "1"


def value(columns: Columns, weights: Array) -> Array:
    tp, fp, fn = weighted_sums(columns, weights, columns.tp, columns.fp, columns.fn)
    return divide(2 * tp, 2 * tp + fp + fn)


METRIC = Metric(id="pixel_f1_pooled", value=value, counts=with_mask)
