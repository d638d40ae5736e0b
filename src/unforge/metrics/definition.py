"""What a metric is: a number made of score rows, computed for many weightings of the rows at once.

A bootstrap replicate is a weight per row (how often its photograph was drawn), so a metric is a
function of the rows and a `(R,n)` array of weights, and the plain value is that of all ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from unforge.scores import THRESHOLD

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Columns:
    """The score rows of one run (one seed) on one test set as numpy columns, sorted by key. Null is NaN."""

    table: pa.Table

    @classmethod
    def of(cls, table: pa.Table) -> Columns:
        """ValueError when a key repeats."""
        keys = table.column("key").to_numpy(zero_copy_only=False).astype(str)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        if repeated := ordered[1:][ordered[1:] == ordered[:-1]].tolist():
            raise ValueError(f"score rows repeat the keys {repeated[:3]}")
        return cls(table.take(pa.array(order)))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def _numbers(self, name: str) -> Array:
        return np.asarray(self.table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)

    @cached_property
    def key(self) -> list[str]:
        return list(self.table.column("key").to_pylist())

    @cached_property
    def tp(self) -> Array:
        return self._numbers("tp")

    @cached_property
    def fp(self) -> Array:
        return self._numbers("fp")

    @cached_property
    def fn(self) -> Array:
        return self._numbers("fn")

    @cached_property
    def tn(self) -> Array:
        return self._numbers("tn")

    @cached_property
    def pixel_auc(self) -> Array:
        return self._numbers("pixel_auc")

    @cached_property
    def pixel_f1_best(self) -> Array:
        return self._numbers("pixel_f1_best")

    @cached_property
    def score(self) -> Array:
        return self._numbers("score")

    @cached_property
    def label(self) -> npt.NDArray[np.int64]:
        return self._numbers("label").astype(np.int64)

    @cached_property
    def predicted(self) -> Array:
        """Predicted label, 0 or 1: of class probabilities, whether the most probable class is another than the first
        (real); else score > 0.5. NaN where there is neither."""
        result = np.where(np.isnan(self.score), np.nan, self.score > THRESHOLD)
        for i, probabilities in enumerate(self.table.column("class_probs").to_pylist()):
            if probabilities:
                result[i] = int(np.argmax(probabilities)) > 0
        return result

    @cached_property
    def unit(self) -> npt.NDArray[np.intp]:
        """Code of each row's unit, 0 to the number of units - 1."""
        return np.unique(np.asarray(self.table.column("unit").to_pylist(), dtype=str), return_inverse=True)[1]

    @cached_property
    def photograph(self) -> npt.NDArray[np.str_]:
        """`(n,)` the photograph a row is resampled with: the first of its `source`, its background.

        A unit goes with its first row's photograph; a row without sources goes by its unit.
        """
        units = self.table.column("unit").to_pylist()
        sources = self.table.column("source").to_pylist()
        of_unit: dict[str, str] = {}
        for unit, source in zip(units, sources, strict=True):
            of_unit.setdefault(unit, source[0] if source else unit)
        return np.asarray([of_unit[unit] for unit in units], dtype=str)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One definition. `value(columns, weights (R,n))` gives `(R,)`, NaN where it is undefined;
    `counts(columns)` gives `(n,)` bool: the images it is made of."""

    id: str
    value: Callable[[Columns, Array], Array]
    counts: Callable[[Columns], npt.NDArray[np.bool_]]
    per_image: Callable[[Columns], Array] | None = None
    """The values the metric is the mean of, NaN for images that do not count; None: not a mean."""
    lower: bool = False
    """Whether less is better."""


def mean(id: str, per_image: Callable[[Columns], Array], lower: bool = False) -> Metric:
    """A metric that is the mean of one value per image, over the images that have one."""

    def value(columns: Columns, weights: Array) -> Array:
        values = per_image(columns)
        valid = ~np.isnan(values)
        return divide(weights @ np.where(valid, values, 0.0), weights @ valid.astype(np.float64))

    return Metric(id=id, value=value, counts=lambda c: ~np.isnan(per_image(c)), per_image=per_image, lower=lower)


def divide(numerator: Array, denominator: Array) -> Array:
    """Elementwise quotient, NaN where the denominator is 0."""
    result: Array = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), np.nan)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) != 0)
    return result


def manipulated(columns: Columns, values: Array) -> Array:
    """`values` with NaN for images whose mask is empty (authentic ones among them)."""
    return np.where(columns.tp + columns.fn > 0, values, np.nan)


def tampered(columns: Columns, values: Array) -> Array:
    """`values` of images that were tampered with in part; NaN for authentic and for fully generated ones, whose mask
    is empty or the whole image."""
    kind = np.asarray(columns.table.column("kind").to_pylist(), dtype=str)
    return np.where((columns.tp + columns.fn > 0) & (columns.label > 0) & (kind != "generated"), values, np.nan)


def with_prediction(columns: Columns) -> npt.NDArray[np.bool_]:
    """Images that the method called authentic or not."""
    return ~np.isnan(columns.predicted)


def with_mask(columns: Columns) -> npt.NDArray[np.bool_]:
    """Images the method gave a mask for."""
    return ~np.isnan(columns.tp)


def with_score(columns: Columns) -> npt.NDArray[np.bool_]:
    """Images the method gave an image-level score for."""
    return ~np.isnan(columns.score)


def weighted_sums(columns: Columns, weights: Array, *terms: npt.NDArray[Any]) -> list[Array]:
    """Sum of each `(n,)` term over the rows by `(R,n)` weights, NaN terms left out: `(R,)` each."""
    stacked = np.nan_to_num(np.stack([np.asarray(term, dtype=np.float64) for term in terms], axis=1))
    return list((weights @ stacked).T)


def by_score(score: Array, label: npt.NDArray[np.int64], weights: Array) -> tuple[Array, Array]:
    """Weight of positives and negatives per distinct score, highest score first: `(R,G)` each."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    shuffled = weights[:, order]
    positive = (label[order] > 0).astype(np.float64)
    pos = np.add.reduceat(shuffled * positive, starts, axis=1)
    neg = np.add.reduceat(shuffled * (1 - positive), starts, axis=1)
    return pos, neg


def weighted_auc(score: Array, label: npt.NDArray[np.int64], weights: Array) -> Array:
    """Area under the ROC curve for each row of `(R,n)` weights, ties at half credit; NaN with one class."""
    if not score.size:
        return np.full(len(weights), np.nan)
    pos, neg = by_score(score, label, weights)
    n_pos, n_neg = pos.sum(axis=1), neg.sum(axis=1)
    neg_below = n_neg[:, None] - np.cumsum(neg, axis=1)
    return divide(np.sum(pos * (neg_below + neg / 2), axis=1), n_pos * n_neg)


def weighted_tpr(pos: Array, neg: Array, fpr: float) -> Array:
    """Share of positives at the lowest threshold whose false-positive rate is at most `fpr`: `(R,)`.

    `pos`, `neg` as `by_score` gives them; NaN where either is empty.
    """
    n_pos, n_neg = pos.sum(axis=1), neg.sum(axis=1)
    rate = divide(np.cumsum(neg, axis=1), n_neg[:, None])
    passed = np.sum(rate <= fpr + 1e-12, axis=1)
    reached = np.concatenate((np.zeros((len(pos), 1)), np.cumsum(pos, axis=1)), axis=1)
    found = np.take_along_axis(reached, passed[:, None], axis=1)[:, 0]
    return np.where(n_neg > 0, divide(found, n_pos), np.nan)
