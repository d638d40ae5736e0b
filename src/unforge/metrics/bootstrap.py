"""Values with intervals: percentile bootstrap over photographs.

Two images made from one photograph are not independent, so whole photographs are drawn: each row goes
with the first of its `source` (the background), each unit (video) with its first row's. The draws
depend on the seed and on the set of photographs only. Whatever was measured on the same photographs
(seeds, columns, perturbed copies of a test set, the two sides of a claim) is therefore resampled
together, and unrelated test sets independently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from unforge import seeds
from unforge.metrics.definition import Array, Columns, Metric

LEVEL = 0.95
_CELLS = 1 << 21
"""Weights held at a time: replicates x rows."""

Part = tuple[Sequence[pa.Table], Metric]
"""Score rows of one row of a table on one test set, one table per seed, and the metric of the column."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured cell."""

    value: float | None
    """Mean over the seeds; None when no image counts."""
    ci_low: float | None
    ci_high: float | None
    """95 % percentile interval over photographs; None with fewer than two photographs."""
    n: int
    """Images that count."""
    n_seeds: int
    seed_sd: float | None
    """Standard deviation over the seeds (n - 1); None with one seed."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Left minus right, on the same images."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    """95 % percentile interval over photographs and seeds."""
    left: float | None
    right: float | None
    n: int
    """Images that count on both sides."""
    n_seeds: int
    """Seeds of the side that has fewer."""


@dataclass(frozen=True)
class _Measured:
    point: Array
    """`(S,)` value per seed."""
    replicates: Array
    """`(S,R)`."""
    counts: dict[tuple[str, str], bool]
    """(test set, key) of every image: whether it counts in all seeds."""
    photographs: int
    """Photographs with an image that counts."""


def draws(photographs: npt.NDArray[np.str_], seed: int, replicates: int) -> npt.NDArray[np.uint16]:
    """How often each of the (sorted, distinct) photographs is drawn: `(R,P)`, each row sums to P."""
    count = len(photographs)
    digest = hashlib.sha256("\n".join(photographs.tolist()).encode()).hexdigest()
    generator = seeds.generator(seed, digest, "bootstrap")
    result = np.empty((replicates, count), dtype=np.uint16)
    step = max(1, _CELLS // count)
    for start in range(0, replicates, step):
        size = min(step, replicates - start)
        picked = generator.integers(0, count, size=(size, count)) + np.arange(size)[:, None] * count
        result[start : start + size] = np.bincount(picked.ravel(), minlength=size * count).reshape(size, count)
    return result


def _measure(part: Part, seed: int, replicates: int) -> _Measured:
    tables, metric = part
    if not tables:
        raise ValueError(f"{metric.id}: no score rows")
    per_seed = sorted((Columns.of(table) for table in tables), key=_seed)
    first = per_seed[0]
    for columns in per_seed[1:]:
        if columns.key != first.key:
            raise ValueError(f"{metric.id}: the seeds were scored on different images; evaluate them again")
    if not len(first):
        empty = np.full(len(per_seed), np.nan)
        return _Measured(empty, np.full((len(per_seed), replicates), np.nan), {}, 0)
    names, row_of = np.unique(first.photograph, return_inverse=True)
    counts = np.logical_and.reduce([metric.counts(columns) for columns in per_seed])
    ones = np.ones((1, len(first)))
    point = np.concatenate([metric.value(columns, ones) for columns in per_seed])
    drawn = draws(names, seed, replicates)
    result = np.empty((len(per_seed), replicates))
    step = max(1, _CELLS // len(first))
    for start in range(0, replicates, step):
        weights = drawn[start : start + step].astype(np.float64)[:, row_of]
        for index, columns in enumerate(per_seed):
            result[index, start : start + step] = metric.value(columns, weights)
    testsets = first.table.column("testset").to_pylist()
    identity = dict(zip(zip(testsets, first.key, strict=True), counts.tolist(), strict=True))
    return _Measured(point, result, identity, len(np.unique(row_of[counts])))


def _seed(columns: Columns) -> int:
    return columns.table.column("seed")[0].as_py() if len(columns) else 0


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _interval(replicates: Array) -> tuple[float | None, float | None]:
    defined = replicates[~np.isnan(replicates)]
    if not defined.size:
        return None, None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _mean_of(parts: Sequence[_Measured]) -> tuple[Array, Array]:
    """Mean over the parts of the value per seed `(S,)` and of its replicates `(S,R)`."""
    if len({len(part.point) for part in parts}) > 1:
        raise ValueError("the columns have different numbers of seeds")
    return np.mean([part.point for part in parts], axis=0), np.mean([part.replicates for part in parts], axis=0)


def average(parts: Sequence[Part], seed: int, replicates: int = 1000) -> Estimate:
    """Mean of several columns (an AVG column); its `n` is the sum of theirs. None when one of them is."""
    return of_columns([parts], seed, replicates)


def of_columns(columns: Sequence[Sequence[Part]], seed: int, replicates: int = 1000) -> Estimate:
    """Mean of columns that are each the mean of their parts, a column of many parts weighing no more than another.

    Columns with different numbers of seeds are each averaged over theirs first; `n_seeds` is that of the fewest.
    """
    if not columns or not all(columns):
        raise ValueError("an average of no columns")
    by_column = [[_measure(part, seed, replicates) for part in parts] for parts in columns]
    measured = [part for parts in by_column for part in parts]
    points, drawn = zip(*(_mean_of(parts) for parts in by_column), strict=True)
    fewest = min(len(point) for point in points)
    if any(len(point) > fewest for point in points):
        points = tuple(np.mean(point, keepdims=True) for point in points)
        drawn = tuple(np.mean(each, axis=0, keepdims=True) for each in drawn)
    point, replicated = np.mean(points, axis=0), np.mean(drawn, axis=0)
    value = _number(float(np.mean(point)))
    low, high = (None, None)
    if value is not None and all(part.photographs > 1 for part in measured):
        low, high = _interval(replicated.mean(axis=0))
    return Estimate(
        value=value,
        ci_low=low,
        ci_high=high,
        n=sum(sum(part.counts.values()) for part in measured),
        n_seeds=fewest,
        seed_sd=_number(float(np.std(point, ddof=1))) if len(point) > 1 else None,
    )


def paired(left: Sequence[Part], right: Sequence[Part], seed: int, replicates: int = 1000) -> Difference:
    """Mean of the left columns minus mean of the right ones, with an interval over photographs and seeds.

    Both sides are resampled together wherever they share photographs; each side's seeds are drawn
    independently of the other's. ValueError when the sides were scored on different images of a
    test set they share.
    """
    sides = [[_measure(part, seed, replicates) for part in side] for side in (left, right)]
    seen = [{image: ok for part in side for image, ok in part.counts.items()} for side in sides]
    for name in sorted({testset for testset, _ in seen[0]} & {testset for testset, _ in seen[1]}):
        images = [{image for image in side if image[0] == name} for side in seen]
        if images[0] != images[1]:
            raise ValueError(f"{name}: the two sides were scored on different images; evaluate them again")
    generator = seeds.generator(seed, "seeds", "bootstrap")
    values, replicated = [], []
    for side in sides:
        point, drawn = _mean_of(side)
        chosen = generator.integers(0, len(point), size=(len(point), replicates))
        values.append(float(np.mean(point)))
        replicated.append(np.mean(np.take_along_axis(drawn, chosen, axis=0), axis=0))
    difference = _number(values[0] - values[1])
    low, high = (None, None)
    if difference is not None and all(part.photographs > 1 for side in sides for part in side):
        low, high = _interval(replicated[0] - replicated[1])
    shared = {name for name, _ in seen[0]} == {name for name, _ in seen[1]}
    both = [image for image, ok in seen[0].items() if ok and seen[1].get(image, False)]
    return Difference(
        value=difference,
        ci_low=low,
        ci_high=high,
        left=_number(values[0]),
        right=_number(values[1]),
        n=len(both) if shared else min(sum(side.values()) for side in seen),
        n_seeds=min(len(side[0].point) for side in sides),
    )
