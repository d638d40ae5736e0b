"""Intervals: against scipy on a plain mean, coverage, pairing, clusters, determinism, speed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from tests.unit.metrics.score_rows import counts, scored, table
from unforge import metrics
from unforge.metrics.bootstrap import draws

METRIC = "pixel_auc"


def rows_of(values: np.ndarray, seed: int = 0, **more: Any) -> pa.Table:
    """Rows whose `pixel_auc` are `values`, a photograph each unless `source` gives them."""
    source = more.pop("source", None)
    made = []
    for index, number in enumerate(values.tolist()):
        row = {**counts(1, 1, 1, 1), "pixel_auc": number, **more}
        made.append(row | ({"source": source[index]} if source else {}))
    return table(made, seed)


def test_interval_of_a_mean_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).gamma(2.0, 0.1, 80)
    ours = metrics.estimate([rows_of(values)], METRIC, seed=0, replicates=20_000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean())
    assert ours.ci_low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.ci_high == pytest.approx(theirs.high, abs=0.03 * width)


def covered(estimates: list[metrics.Estimate], truth: float) -> float:
    inside = [e.ci_low <= truth <= e.ci_high for e in estimates if e.ci_low is not None and e.ci_high is not None]
    assert len(inside) == len(estimates)
    return float(np.mean(inside))


def test_coverage_with_one_image_per_photograph() -> None:
    rng = np.random.default_rng(1)
    found = [
        metrics.estimate([rows_of(rng.beta(2, 2, 60))], METRIC, seed=trial, replicates=300) for trial in range(250)
    ]
    assert 0.90 <= covered(found, 0.5) <= 0.98  # 95 % nominal, a little less at n = 60


def test_coverage_with_several_images_per_photograph() -> None:
    rng = np.random.default_rng(2)
    clustered, naive = [], []
    for trial in range(120):
        values = np.repeat(rng.normal(0.5, 0.1, 30), 6) + rng.normal(0, 0.02, 180)
        source = [[f"p{i // 6}", f"donor{i % 7}"] for i in range(180)]
        clustered.append(metrics.estimate([rows_of(values, source=source)], METRIC, seed=trial, replicates=200))
        naive.append(metrics.estimate([rows_of(values)], METRIC, seed=trial, replicates=200))
    assert covered(clustered, 0.5) >= 0.89
    assert covered(naive, 0.5) <= 0.75  # what ignoring the photographs would claim


def test_units_stay_together() -> None:
    rows = [{**counts(1, 1, 1, 1), "unit": f"v{i // 3}", "source": [f"frame{i}"], "pixel_auc": 0.5} for i in range(9)]
    photograph = metrics.Columns.of(table(rows)).photograph
    assert photograph.tolist() == ["frame0"] * 3 + ["frame3"] * 3 + ["frame6"] * 3
    rows = [{**row, "source": []} for row in rows]
    assert set(metrics.Columns.of(table(rows)).photograph) == {"v0", "v1", "v2"}


def test_draws_are_of_the_right_size_and_depend_on_photographs_and_seed_only() -> None:
    names = np.array(["a", "b", "c", "d"])
    one = draws(names, 0, 500)
    assert one.shape == (500, 4)
    assert np.all(one.sum(axis=1) == 4)
    assert one.mean() == pytest.approx(1)
    assert one.var() == pytest.approx(0.75, abs=0.08)  # binomial(4, 1/4)
    assert np.array_equal(one, draws(names, 0, 500))
    assert not np.array_equal(one, draws(names, 1, 500))
    assert not np.array_equal(one, draws(np.array(["a", "b", "c", "e"]), 0, 500))


def test_seeds() -> None:
    rng = np.random.default_rng(3)
    values = rng.random((3, 40))
    tables = [rows_of(v, seed) for seed, v in enumerate(values)]
    estimate = metrics.estimate(tables, METRIC, seed=0)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.seed_sd == pytest.approx(np.std(values.mean(axis=1), ddof=1))
    assert (estimate.n, estimate.n_seeds) == (40, 3)
    assert metrics.estimate(tables[::-1], METRIC, seed=0) == estimate
    # the photographs of all seeds are drawn together: the interval is that of the per-image means
    together = metrics.estimate([rows_of(values.mean(axis=0))], METRIC, seed=0)
    assert estimate.ci_low == pytest.approx(together.ci_low)
    assert estimate.ci_high == pytest.approx(together.ci_high)
    assert together.seed_sd is None


def test_degenerate_intervals() -> None:
    one = metrics.estimate([rows_of(np.array([0.4]))], METRIC, seed=0)
    assert (one.value, one.ci_low, one.ci_high, one.n) == (0.4, None, None, 1)
    same = metrics.estimate([rows_of(np.array([0.4, 0.6]), source=[["p"], ["p"]])], METRIC, seed=0)
    assert (same.value, same.ci_low) == (0.5, None)
    constant = metrics.estimate([rows_of(np.full(9, 0.4))], METRIC, seed=0)
    assert constant.ci_low == pytest.approx(0.4)
    assert constant.ci_high == pytest.approx(0.4)


def test_average() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.random(40), rng.random(90)
    one, other = rows_of(first), rows_of(second, testset="other", source=[[f"q{i}"] for i in range(90)])
    estimate = metrics.average([([one], METRIC), ([other], METRIC)], seed=0, replicates=4000)
    assert estimate.value == pytest.approx((first.mean() + second.mean()) / 2)
    assert estimate.n == 130
    # independent test sets: variance of the mean is a quarter of the sum of the variances
    expected = 2 * 1.96 * np.sqrt(first.var() / 40 + second.var() / 90) / 2
    assert estimate.ci_high is not None
    assert estimate.ci_low is not None
    assert estimate.ci_high - estimate.ci_low == pytest.approx(expected, rel=0.08)


def test_average_over_copies_of_one_set_is_no_more_certain() -> None:
    values = np.random.default_rng(5).random(50)
    clean, perturbed = rows_of(values), rows_of(values, testset="set~jpeg70")
    alone = metrics.estimate([clean], METRIC, seed=0)
    both = metrics.average([([clean], METRIC), ([perturbed], METRIC)], seed=0)
    assert both.ci_low == pytest.approx(alone.ci_low)
    assert both.ci_high == pytest.approx(alone.ci_high)


def test_average_with_an_undefined_column_is_undefined() -> None:
    nothing = table([{"label": 0}, {"label": 0}])
    estimate = metrics.average([([rows_of(np.array([0.1, 0.2]))], METRIC), ([nothing], METRIC)], seed=0)
    assert (estimate.value, estimate.ci_low) == (None, None)


def test_paired_on_the_same_images_sees_a_small_gap() -> None:
    rng = np.random.default_rng(6)
    base = rng.random(60)
    better = base + 0.02 + rng.normal(0, 0.01, 60)
    left, right = rows_of(better), rows_of(base)
    found = metrics.paired([([left], METRIC)], [([right], METRIC)], seed=0)
    assert found.value == pytest.approx((better - base).mean())
    assert found.left == pytest.approx(better.mean())
    assert found.right == pytest.approx(base.mean())
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert 0 < found.ci_low < found.value < found.ci_high < 0.04
    expected = 2 * 1.96 * (better - base).std() / np.sqrt(60)
    assert found.ci_high - found.ci_low == pytest.approx(expected, rel=0.15)
    assert (found.n, found.n_seeds) == (60, 1)
    mirrored = metrics.paired([([right], METRIC)], [([left], METRIC)], seed=0)
    assert mirrored.value == pytest.approx(-found.value)


def test_paired_is_as_unsure_as_the_seeds_differ() -> None:
    base = np.random.default_rng(7).random(60)
    left = [rows_of(base + shift, seed) for seed, shift in enumerate((-0.2, 0.05, 0.3))]
    right = [rows_of(base, seed) for seed in range(3)]
    found = metrics.paired([(left, METRIC)], [(right, METRIC)], seed=0)
    assert found.value == pytest.approx(0.05)
    assert found.n_seeds == 3
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.ci_low < -0.1
    assert found.ci_high > 0.2


def test_paired_counts_images_valid_on_both_sides() -> None:
    left = table([counts(1, 1, 1, 1), counts(2, 1, 1, 1), {"label": 1}])
    right = table([counts(1, 1, 1, 1), {"label": 1}, counts(2, 1, 1, 1)])
    assert metrics.paired([([left], "pixel_iou")], [([right], "pixel_iou")], seed=0, replicates=9).n == 1


def test_different_images_are_refused() -> None:
    one, other = rows_of(np.array([0.1, 0.2, 0.3])), rows_of(np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="scored on different images"):
        metrics.estimate([one, other], METRIC, seed=0)
    with pytest.raises(ValueError, match="set: the two sides were scored on different images"):
        metrics.paired([([one], METRIC)], [([other], METRIC)], seed=0)
    with pytest.raises(ValueError, match="different numbers of seeds"):
        metrics.average([([one], METRIC), ([one, one], METRIC)], seed=0)
    with pytest.raises(ValueError, match="no score rows"):
        metrics.estimate([], METRIC, seed=0)
    with pytest.raises(ValueError, match=r"repeat the keys \['k000'\]"):
        metrics.estimate([pa.concat_tables([one, one.slice(0, 1)])], METRIC, seed=0)


@pytest.mark.parametrize(("metric", "limit"), [(METRIC, 0.05), ("ciou", 0.5), ("image_auc", 0.5), ("tpr@1%fpr", 0.5)])
def test_speed(metric: str, limit: float) -> None:
    """1,000 replicates of 100 rows and three seeds, CPU seconds, best of three."""
    tables = []
    for seed in range(3):
        rows, _, _ = scored(100, seed)
        tables.append(table([{**counts(3, 1, 2, 9), "pixel_auc": 0.5, **row} for row in rows], seed))
    spent = []
    for _ in range(3):
        started = time.process_time()
        assert metrics.estimate(tables, metric, seed=0, replicates=1000).value is not None
        spent.append(time.process_time() - started)
    assert min(spent) < limit
