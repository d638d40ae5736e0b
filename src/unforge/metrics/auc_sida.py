"""What SIDA's evaluator prints as "AUC": mean class precision times mean class recall.

Not an area under a curve. With three class probabilities the classes are real, fully synthetic and tampered, true and
predicted as in `class_acc`; otherwise the labels that occur, the prediction being score > 0.5. A class never predicted
has precision 0. Averaging: over the whole test set. Undefined with one class. Source: SIDA's `test.py`, `auc_approx`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unforge.metrics import class_acc
from unforge.metrics.definition import Array, Columns, Metric, divide, weighted_sums

VERSION = "2"


def counts(columns: Columns) -> npt.NDArray[np.bool_]:
    return ~np.isnan(named(columns)[1])


def named(columns: Columns) -> tuple[npt.NDArray[np.int64], Array]:
    """`(n,)` true and predicted class of each image; NaN where none is predicted. Images without class probabilities do
    not count beside ones that have them."""
    three = [len(p or ()) == len(class_acc.CLASSES) for p in columns.table.column("class_probs").to_pylist()]
    if any(three):
        return class_acc.truth(columns), np.where(three, class_acc.predicted(columns), np.nan)
    return columns.label, columns.predicted


def value(columns: Columns, weights: Array) -> Array:
    true, said = named(columns)
    valid = ~np.isnan(said)
    classes = np.unique(true[valid])
    if len(classes) < 2:
        return np.full(len(weights), np.nan)
    precisions, recalls = [], []
    for one in classes:
        truth, chosen = valid & (true == one), valid & (said == one)
        hits, predicted, actual = weighted_sums(columns, weights, truth & chosen, chosen, truth)
        precisions.append(np.where(predicted == 0, 0.0, divide(hits, predicted)))
        recalls.append(divide(hits, actual))
    product: Array = np.mean(precisions, axis=0) * np.mean(recalls, axis=0)
    return product


METRIC = Metric(id="auc_sida", value=value, counts=counts)
