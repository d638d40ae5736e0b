"""True-positive rates at a fixed false-positive rate, from the signals of images of known origin. No torch.

An image is called the model's own when its signal lies below a threshold. As published, the threshold is read
from the very negatives the rate is stated for; held out, from other negatives, and the false-positive rate that
it then really has is measured. Intervals are Clopper-Pearson's, over images, with the threshold as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[np.float64]

FPR = 0.01
LEVEL = 0.95
_TIE = 1e-9
"""Keeps a product such as 0.01 x 100 from falling below the integer it stands for."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A true-positive rate with what it rests on."""

    value: float | None
    """Share of the positives below the threshold; None without positives or without a threshold."""
    ci_low: float | None
    ci_high: float | None
    n: int
    """Positives."""
    threshold: float | None
    """Signals strictly below are called the model's own; None: too few negatives to set one."""
    fpr: float | None
    """Share of the negatives below the threshold: held out, the rate that was reached, not the one aimed at."""
    fpr_low: float | None
    fpr_high: float | None
    negatives: int
    calibration: int
    """Negatives that set the threshold; 0: the negatives themselves did."""


def values(rows: pa.Table, signal: str) -> Array:
    """A signal of all rows, (n,). ValueError when a row has no such signal, or NaN."""
    found = [dict(row or []) for row in rows.column("signals").to_pylist()]
    missing = [key for key, row in zip(rows.column("key").to_pylist(), found, strict=True) if signal not in row]
    if missing:
        raise ValueError(f"no signal {signal!r} in the rows {missing[:3]}")
    return _checked(np.array([row[signal] for row in found], dtype=np.float64))


def calibrated(calibration: Array, fpr: float = FPR) -> float:
    """Threshold of which a fresh negative falls below with probability at most `fpr`, whatever the distribution.

    With n negatives from the same source it is the floor(fpr (n + 1))-th smallest of their signals. ValueError
    when that is none (below 99 for 1 %): then no decision can be had at this rate.
    """
    _check(fpr)
    rank = math.floor(fpr * (len(calibration) + 1) + _TIE)
    if rank < 1:
        needed = math.ceil(1 / fpr - _TIE) - 1
        raise ValueError(f"{len(calibration)} calibration images cannot state a rate of {fpr:g}: {needed} are needed")
    return float(np.sort(_checked(calibration))[rank - 1])


def published(positives: Array, negatives: Array, fpr: float = FPR) -> Rate:
    """Largest true-positive rate with a false-positive rate of at most `fpr` on the `negatives` themselves.

    Optimistic: the threshold has seen them. Source: iar_provenance; released `metrics.py`
    (`tpr[sum(fpr <= .01) - 1]`). Deviation: that scales signals by their largest value first, which can make the
    smallest ones equal.
    """
    _check(fpr)
    negatives = _checked(negatives)
    threshold = None
    if len(negatives):
        threshold = float(np.sort(negatives)[math.floor(fpr * len(negatives) + _TIE)])
    return _rate(_checked(positives), negatives, threshold, 0)


def held_out(positives: Array, negatives: Array, calibration: Array, fpr: float = FPR) -> Rate:
    """True-positive rate at the threshold `calibrated` gives, and the false-positive rate reached on `negatives`.

    Without enough calibration images for the rate there is no value.
    """
    _check(fpr)
    enough = fpr * (len(calibration) + 1) + _TIE >= 1
    threshold = calibrated(calibration, fpr) if enough else None
    return _rate(_checked(positives), _checked(negatives), threshold, len(calibration))


def tpr_published(rows: pa.Table, negatives: pa.Table, calibration: pa.Table | None, signal: str) -> Rate:
    """`published` of a signal of score rows at 1 %; `calibration` is not used."""
    return published(values(rows, signal), values(negatives, signal))


def tpr_held_out(rows: pa.Table, negatives: pa.Table, calibration: pa.Table | None, signal: str) -> Rate:
    """`held_out` of a signal of score rows at 1 %. ValueError without calibration rows, or when they share a
    photograph with the negatives."""
    if calibration is None:
        raise ValueError("a held-out threshold needs calibration rows")
    if shared := sorted(_photographs(negatives) & _photographs(calibration)):
        raise ValueError(f"calibration and negatives share the photographs {shared[:3]}")
    return held_out(values(rows, signal), values(negatives, signal), values(calibration, signal))


METRICS: dict[str, Callable[[pa.Table, pa.Table, pa.Table | None, str], Rate]] = {
    "tpr@1%fpr": tpr_published,
    "tpr@1%fpr_held_out": tpr_held_out,
}
"""By id, as tables write it: (rows of positives, negatives, calibration, signal)."""


def clopper_pearson(successes: int, trials: int, level: float = LEVEL) -> tuple[float | None, float | None]:
    """Exact interval of a binomial share; (None, None) without trials. ValueError for impossible counts."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials}")
    if not trials:
        return None, None
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else _solved(lambda p: 1 - _at_most(successes - 1, trials, p) - tail)
    high = 1.0 if successes == trials else _solved(lambda p: tail - _at_most(successes, trials, p))
    return low, high


def _rate(positives: Array, negatives: Array, threshold: float | None, calibration: int) -> Rate:
    n, count = len(positives), len(negatives)
    if threshold is None:
        return Rate(
            value=None, ci_low=None, ci_high=None, n=n, threshold=None, fpr=None, fpr_low=None, fpr_high=None,
            negatives=count, calibration=calibration,
        )  # fmt: skip
    found, wrong = int(np.sum(positives < threshold)), int(np.sum(negatives < threshold))
    low, high = clopper_pearson(found, n)
    fpr_low, fpr_high = clopper_pearson(wrong, count)
    return Rate(
        value=found / n if n else None, ci_low=low, ci_high=high, n=n, threshold=threshold,
        fpr=wrong / count if count else None, fpr_low=fpr_low, fpr_high=fpr_high, negatives=count,
        calibration=calibration,
    )  # fmt: skip


def _photographs(rows: pa.Table) -> set[str]:
    """What images were made from, or the image itself."""
    names = zip(rows.column("source").to_pylist(), rows.column("unit").to_pylist(), strict=True)
    return {name for source, unit in names for name in (source or [unit])}


def _check(fpr: float) -> None:
    if not 0 < fpr < 1:
        raise ValueError(f"false-positive rate {fpr}: between 0 and 1 is accepted")


def _checked(signals: Array) -> Array:
    array = np.asarray(signals, dtype=np.float64)
    if np.isnan(array).any():
        raise ValueError(f"{int(np.isnan(array).sum())} of {len(array)} signals are not numbers")
    return array


def _at_most(successes: int, trials: int, p: float) -> float:
    """Probability of at most `successes`, by its terms in logarithms."""
    k = np.arange(1, successes + 1, dtype=np.float64)
    ways = np.concatenate(([0.0], np.cumsum(np.log((trials - k + 1) / k))))
    counts = np.arange(successes + 1)
    return float(np.exp(ways + counts * math.log(p) + (trials - counts) * math.log1p(-p)).sum())


def _solved(rising: Callable[[float], float]) -> float:
    """Root in (0,1) of a function that rises, by halving."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
