"""What SIDA's evaluator prints as "AUC": mean class precision times mean class recall.

Not an area under a curve. Classes are the labels that occur; the prediction is the most probable class,
or score > 0.5 where there are no class probabilities. A class never predicted has precision 0.
Averaging: over the whole test set. Undefined with one class. Source: SIDA's `test.py`, `auc_approx`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unforge.metrics.definition import Array, Columns, Metric, divide, weighted_sums

VERSION = "1"


def counts(columns: Columns) -> npt.NDArray[np.bool_]:
    return ~np.isnan(columns.predicted)


def value(columns: Columns, weights: Array) -> Array:
    valid = counts(columns)
    classes = np.unique(columns.label[valid])
    if len(classes) < 2:
        return np.full(len(weights), np.nan)
    precisions, recalls = [], []
    for one in classes:
        truth, named = valid & (columns.label == one), valid & (columns.predicted == one)
        hits, predicted, actual = weighted_sums(columns, weights, truth & named, named, truth)
        precisions.append(np.where(predicted == 0, 0.0, divide(hits, predicted)))
        recalls.append(divide(hits, actual))
    product: Array = np.mean(precisions, axis=0) * np.mean(recalls, axis=0)
    return product


METRIC = Metric(id="auc_sida", value=value, counts=counts)
