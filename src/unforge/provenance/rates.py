"""Thresholds from photographs that no rate is stated for, and the rates that are reached with them. No torch.

An image is called the model's own when its signal lies below the threshold. Intervals are Clopper-Pearson's, over
images, with the threshold as it is. The rates of the tables are metrics (`tpr@1%fpr`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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


def held_out(positives: Array, negatives: Array, calibration: Array, fpr: float = FPR) -> Rate:
    """True-positive rate at the threshold `calibrated` gives, and the false-positive rate reached on `negatives`.

    Without enough calibration images for the rate there is no value.
    """
    _check(fpr)
    enough = fpr * (len(calibration) + 1) + _TIE >= 1
    threshold = calibrated(calibration, fpr) if enough else None
    return _rate(_checked(positives), _checked(negatives), threshold, len(calibration))


def clopper_pearson(successes: int, trials: int, level: float = LEVEL) -> tuple[float | None, float | None]:
    """Exact interval of a binomial share; (None, None) without trials. ValueError for impossible counts."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials}")
    if not trials:
        return None, None
    from scipy.stats import binomtest

    found = binomtest(successes, trials).proportion_ci(level, "exact")
    return float(found.low), float(found.high)


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


def _check(fpr: float) -> None:
    if not 0 < fpr < 1:
        raise ValueError(f"false-positive rate {fpr}: between 0 and 1 is accepted")


def _checked(signals: Array) -> Array:
    array = np.asarray(signals, dtype=np.float64)
    if np.isnan(array).any():
        raise ValueError(f"{int(np.isnan(array).sum())} of {len(array)} signals are not numbers")
    return array
