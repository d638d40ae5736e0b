"""Cumulative IoU at 0.5: intersection and union summed over the test set, then divided.

Averaging: pooled; large images weigh more. Empty masks: authentic images count, their false
positives lower the value. Resolution: original. Source: LISA's and SIDA's evaluators (cIoU).
"""

from __future__ import annotations

from unforge.metrics.definition import Array, Columns, Metric, divide, weighted_sums, with_mask

VERSION = "1"


def value(columns: Columns, weights: Array) -> Array:
    tp, fp, fn = weighted_sums(columns, weights, columns.tp, columns.fp, columns.fn)
    return divide(tp, tp + fp + fn)


METRIC = Metric(id="ciou", value=value, counts=with_mask)
