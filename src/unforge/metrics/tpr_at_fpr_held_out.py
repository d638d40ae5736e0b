"""True-positive rate at a threshold set for 1 % false positives on held-out negatives.

Half of the negatives' photographs, chosen by their names, set the threshold: the lowest score at which
at most 1 % of those negatives are at or above it. The positives are then counted. The other half of the
negatives is left for reporting the false-positive rate that was really reached. Averaging: over the
whole test set. Undefined without positives or without held-out negatives. Source: unforge; the honest
form of `tpr@1%fpr`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unforge import seeds
from unforge.metrics.definition import Array, Columns, Metric, by_score, weighted_tpr, with_score

VERSION = "1"
FPR = 0.01


def counts(columns: Columns) -> npt.NDArray[np.bool_]:
    """Positives and held-out negatives."""
    held_out = [seeds.fraction(0, name, "calibration") < 0.5 for name in columns.photograph.tolist()]
    used: npt.NDArray[np.bool_] = with_score(columns) & ((columns.label > 0) | np.asarray(held_out, dtype=bool))
    return used


def value(columns: Columns, weights: Array) -> Array:
    used = counts(columns)
    if not used.any():
        return np.full(len(weights), np.nan)
    return weighted_tpr(*by_score(columns.score[used], columns.label[used], weights[:, used]), FPR)


METRIC = Metric(id="tpr@1%fpr_held_out", value=value, counts=counts)
