"""Accuracy over the three classes real, fully synthetic, tampered: the mean over the classes of their recall.

The true class is by the image's kind: generated images are fully synthetic, authentic ones real, all others tampered.
The predicted class is the most probable one of `class_probs` (in this order); where there are none, it is read from the
mask at 0.5: an all-background mask says real, an all-foreground mask fully synthetic, any other tampered.
Averaging: the mean of the three classes' shares of rightly named images (`class_acc@total` is the share over all
images). Undefined unless all three classes occur. Empty masks: no matter, they are a class. Resolution: original, for
the mask. Source: TamperTok, Sec. A.3 and Table 7 ("Overall": macro); SIDA's evaluator (accuracy of a class is its
recall).
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from unforge.metrics.definition import Array, Columns, Metric, divide, mean, weighted_sums

VERSION = "1"

CLASSES = ("real", "synthetic", "tampered")
"""In the order of `class_probs`."""
TOLERANCE = 0.005
"""Share of an image's pixels. ASSUMPTION(paper): Sec. A.3 says "fully" and gives no tolerance; fewer than 0.5 % of
pixels of the other class are taken for none."""


def truth(columns: Columns) -> npt.NDArray[np.int64]:
    """`(n,)` class of each image. An authentic image has label 0."""
    kind = np.asarray(columns.table.column("kind").to_pylist(), dtype=str)
    named = np.where(kind == "generated", 1, 2)
    return np.where(columns.label == 0, 0, named).astype(np.int64)


def predicted(columns: Columns) -> Array:
    """`(n,)` class each image is said to be, NaN where there are neither class probabilities nor a mask.

    ValueError for class probabilities of another number than three.
    """
    share = divide(columns.tp + columns.fp, columns.tp + columns.fp + columns.fn + columns.tn)
    result = np.where(np.isnan(share), np.nan, 2.0)
    result[share < TOLERANCE] = 0
    result[share > 1 - TOLERANCE] = 1
    for i, probabilities in enumerate(columns.table.column("class_probs").to_pylist()):
        if probabilities:
            if len(probabilities) != len(CLASSES):
                raise ValueError(f"class_probs has {len(probabilities)} numbers: one each for {', '.join(CLASSES)}")
            result[i] = int(np.argmax(probabilities))
    return result


def counts(columns: Columns) -> npt.NDArray[np.bool_]:
    """Images that are said to be of a class."""
    return ~np.isnan(predicted(columns))


def one(name: str) -> Metric:
    """`class_acc@<name>`: recall of that class. Undefined where the class does not occur."""
    return mean(f"class_acc@{name}", partial(_right, which=CLASSES.index(name)))


def total() -> Metric:
    """`class_acc@total`: share of all images."""
    return mean("class_acc@total", partial(_right, which=None))


def _right(columns: Columns, which: int | None) -> Array:
    true, said = truth(columns), predicted(columns)
    wanted = ~np.isnan(said) & ((true == which) if which is not None else True)
    return np.where(wanted, said == true, np.nan)


def value(columns: Columns, weights: Array) -> Array:
    true, said, valid = truth(columns), predicted(columns), counts(columns)
    recalls = []
    for which in range(len(CLASSES)):
        hits, actual = weighted_sums(
            columns, weights, valid & (true == which) & (said == which), valid & (true == which)
        )
        recalls.append(divide(hits, actual))
    return np.asarray(np.mean(recalls, axis=0), dtype=np.float64)


METRIC = Metric(id="class_acc@macro", value=value, counts=counts)
