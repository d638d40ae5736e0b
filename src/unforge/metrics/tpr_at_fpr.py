"""True-positive rate at 1 % false positives, the threshold read from the test negatives, as published.

Threshold: the lowest score at which at most 1 % of the test set's own negatives are at or above it;
that is optimistic, and with fewer than 100 negatives it allows none. Averaging: over the whole test set.
Undefined with one class. Source: the provenance paper's `metrics.py` (`tpr[sum(fpr <= .01) - 1]`).
"""

from __future__ import annotations

import numpy as np

from unforge.metrics.definition import Array, Columns, Metric, by_score, weighted_tpr, with_score

VERSION = "1"
FPR = 0.01


def value(columns: Columns, weights: Array) -> Array:
    scored = with_score(columns)
    if not scored.any():
        return np.full(len(weights), np.nan)
    return weighted_tpr(*by_score(columns.score[scored], columns.label[scored], weights[:, scored]), FPR)


METRIC = Metric(id="tpr@1%fpr", value=value, counts=with_score)
