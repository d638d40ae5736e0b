"""Rates against scipy's intervals and cases worked by hand."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from unforge.provenance import rates


def test_held_out_by_hand() -> None:
    calibration = np.arange(100.0)
    positives, negatives = np.array([-1.0, -0.5, 0.0, 3.0]), np.array([-2.0, 0.0, 1.0, 2.0, 3.0])
    found = rates.held_out(positives, negatives, calibration)
    assert (found.threshold, found.value, found.fpr) == (0.0, 0.5, 0.2)
    assert (found.n, found.negatives, found.calibration) == (4, 5, 100)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(stats.binomtest(2, 4).proportion_ci(0.95, "exact")))
    assert (found.fpr_low, found.fpr_high) == pytest.approx(tuple(stats.binomtest(1, 5).proportion_ci(0.95, "exact")))


def test_too_few_calibration_images_state_no_rate() -> None:
    for count, fpr in ((98, 0.01), (0, 0.01), (8, 0.1)):
        with pytest.raises(ValueError, match=f"{count} calibration images.*{round(1 / fpr) - 1} are needed"):
            rates.calibrated(np.arange(float(count)), fpr)
        found = rates.held_out(np.zeros(3), np.ones(3), np.arange(float(count)), fpr)
        assert (found.value, found.ci_low, found.threshold, found.fpr) == (None, None, None, None)
        assert (found.n, found.negatives, found.calibration) == (3, 3, count)
    assert rates.calibrated(np.arange(99.0)) == 0.0
    assert rates.calibrated(np.arange(199.0)) == 1.0


@pytest.mark.parametrize(("count", "fpr"), [(99, 0.01), (200, 0.01), (150, 0.05)])
def test_a_calibrated_threshold_keeps_its_promise_and_the_published_one_does_not(count: int, fpr: float) -> None:
    """Mean false-positive rate on fresh negatives, over many calibrations: exact expectation r / (n + 1)."""
    rng = np.random.default_rng(0)
    held, seen = [], []
    for _ in range(4000):
        sample = rng.exponential(size=count)
        held.append(1 - np.exp(-rates.calibrated(sample, fpr)))
        seen.append(1 - np.exp(-np.sort(sample)[int(fpr * count + 1e-9)]))
    assert np.mean(held) <= fpr * 1.05
    assert np.mean(held) == pytest.approx(int(fpr * (count + 1) + 1e-9) / (count + 1), rel=0.05)
    allowed = int(fpr * count + 1e-9)
    assert np.mean(seen) == pytest.approx((allowed + 1) / (count + 1), rel=0.05)
    assert (allowed + 1) / (count + 1) >= fpr


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 50), (3, 50), (50, 50), (997, 1000), (500, 1000)]
)
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_intervals_are_scipys(successes: int, trials: int, level: float) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(level, "exact")
    assert rates.clopper_pearson(successes, trials, level) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_intervals_of_nothing_and_of_the_impossible() -> None:
    assert rates.clopper_pearson(0, 0) == (None, None)
    for successes, trials in ((2, 1), (-1, 5)):
        with pytest.raises(ValueError, match=f"{successes} of {trials}"):
            rates.clopper_pearson(successes, trials)


def test_empty_sets_have_no_rate() -> None:
    some, none = np.arange(3.0), np.zeros(0)
    assert rates.held_out(some, none, np.arange(200.0)).fpr is None
    assert rates.held_out(none, some, np.arange(200.0)).value is None


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 signals"):
        rates.calibrated(np.array([1.0, np.nan]), 0.5)
    for fpr in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="false-positive rate"):
            rates.calibrated(np.ones(2), fpr)


def test_rates_need_no_torch() -> None:
    tree = ast.parse(Path(rates.__file__).read_text())
    imported = {n.names[0].name for n in ast.walk(tree) if isinstance(n, ast.Import)}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported == {"__future__", "math", "dataclasses", "numpy", "numpy.typing", "scipy.stats"}
