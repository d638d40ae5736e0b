"""F1 over the three classes real, fully synthetic, tampered: each against the others, then the mean.

True and predicted classes as in `class_acc`. Averaging: per class over the whole test set, 2 tp / (2 tp + fp + fn),
then the mean over the classes; the F1 of all classes pooled would be `class_acc@total`. Undefined unless all three
classes occur. Empty masks: no matter, they are a class. Resolution: original, for the mask. Source: TamperTok, Sec. A.3
and Table 7; equals scikit-learn's `f1_score` with average="macro".
"""

from __future__ import annotations

from functools import partial

import numpy as np

from unforge.metrics.class_acc import CLASSES, counts, predicted, truth
from unforge.metrics.definition import Array, Columns, Metric, divide, weighted_sums

VERSION = "1"


def of_class(columns: Columns, weights: Array, which: int) -> Array:
    """`(R,)` F1 of one class against the others, NaN where the class does not occur."""
    valid, true, said = counts(columns), truth(columns) == which, predicted(columns) == which
    hits, wrong, positives = weighted_sums(columns, weights, valid & true & said, valid & ~true & said, valid & true)
    return np.where(positives > 0, divide(2 * hits, hits + wrong + positives), np.nan)


def one(name: str) -> Metric:
    """`class_f1@<name>`: F1 of that class."""
    return Metric(id=f"class_f1@{name}", value=partial(of_class, which=CLASSES.index(name)), counts=counts)


def value(columns: Columns, weights: Array) -> Array:
    each = [of_class(columns, weights, which) for which in range(len(CLASSES))]
    return np.asarray(np.mean(each, axis=0), dtype=np.float64)


METRIC = Metric(id="class_f1@macro", value=value, counts=counts)
