"""Rates against scikit-learn's ROC curve, scipy's intervals and cases worked by hand."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_curve

from unforge.provenance import rates

SIGNALS = st.lists(st.integers(0, 40).map(float), min_size=1, max_size=150)


@given(SIGNALS, SIGNALS, st.sampled_from([0.01, 0.05, 0.1, 0.5]))
@settings(max_examples=80, deadline=None)
def test_published_is_the_roc_curves_point(positives: list[float], negatives: list[float], fpr: float) -> None:
    """All points of the curve are kept: scikit-learn drops those on a straight line, which ties can make one too
    many of."""
    truth = [1] * len(positives) + [0] * len(negatives)
    false, true, _ = roc_curve(truth, [-s for s in positives + negatives], drop_intermediate=False)
    found = rates.published(np.array(positives), np.array(negatives), fpr)
    assert found.value == pytest.approx(true[np.sum(false <= fpr) - 1])
    assert found.fpr is not None
    assert found.fpr <= fpr
    assert (found.n, found.negatives, found.calibration) == (len(positives), len(negatives), 0)


def test_one_percent_of_a_thousand_is_ten() -> None:
    negatives = np.arange(1000.0)
    positives = np.array([0.0, 9.0, 9.5, 10.0, 11.0])
    found = rates.published(positives, negatives)
    assert (found.threshold, found.fpr, found.value) == (10.0, 0.01, 0.6)
    assert rates.published(positives, negatives[:99]).threshold == 0.0
    assert rates.published(positives, negatives[:100]).threshold == 1.0


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
    assert rates.published(none, some).value is None
    assert rates.published(some, none).value is None
    assert rates.held_out(some, none, np.arange(200.0)).fpr is None
    assert rates.held_out(none, some, np.arange(200.0)).value is None


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 signals"):
        rates.published(np.array([1.0, np.nan]), np.ones(2))
    for fpr in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="false-positive rate"):
            rates.published(np.ones(2), np.ones(2), fpr)
    assert rates.published(np.array([0.0, np.inf]), np.array([1.0, np.inf])).value == 0.5


def rows(signals: list[dict[str, float] | None], name: str) -> pa.Table:
    keys = [f"{name}{i}" for i in range(len(signals))]
    return pa.table(
        {
            "key": keys,
            "unit": keys,
            "source": [[f"photo-{key}"] for key in keys],
            "signals": pa.array(
                [list(s.items()) if s else None for s in signals], type=pa.map_(pa.string(), pa.float64())
            ),
        }
    )


def test_metrics_take_rows_negatives_and_calibration() -> None:
    positives = rows([{"quant_loss": 0.5, "combined": 9.0}, {"quant_loss": 3.0, "combined": 9.0}], "own")
    negatives = rows([{"quant_loss": float(i + 1), "combined": 1.0} for i in range(10)], "photo")
    calibration = rows([{"quant_loss": float(i + 2), "combined": 1.0} for i in range(99)], "other")
    published = rates.METRICS["tpr@1%fpr"](positives, negatives, None, "quant_loss")
    assert (published.value, published.threshold) == (0.5, 1.0)
    held_out = rates.METRICS["tpr@1%fpr_held_out"](positives, negatives, calibration, "quant_loss")
    assert (held_out.value, held_out.threshold, held_out.fpr) == (0.5, 2.0, 0.1)
    assert rates.METRICS["tpr@1%fpr"](positives, negatives, None, "combined").value == 0
    with pytest.raises(ValueError, match="needs calibration"):
        rates.tpr_held_out(positives, negatives, None, "quant_loss")
    with pytest.raises(ValueError, match="share the photographs"):
        rates.tpr_held_out(positives, negatives, pa.concat_tables([calibration, negatives]), "quant_loss")
    with pytest.raises(ValueError, match=r"no signal 'enc_loss' in the rows \['own0'"):
        rates.values(positives, "enc_loss")
    with pytest.raises(ValueError, match="none0"):
        rates.values(rows([None], "none"), "quant_loss")


def test_rates_need_no_torch() -> None:
    tree = ast.parse(Path(rates.__file__).read_text())
    imported = {n.names[0].name for n in ast.walk(tree) if isinstance(n, ast.Import)}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported == {"__future__", "math", "collections.abc", "dataclasses", "numpy", "numpy.typing", "pyarrow"}
