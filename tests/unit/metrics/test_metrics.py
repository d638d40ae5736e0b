"""Each metric against scikit-learn or arithmetic written out beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from tests.unit.metrics.score_rows import counts, scored, table
from unforge import metrics, seeds

IDS = [
    "attention_gap",
    "auc_sida",
    "ciou",
    "ciou@tampered",
    "class_acc@macro",
    "class_acc@real",
    "class_acc@synthetic",
    "class_acc@tampered",
    "class_acc@total",
    "class_f1@macro",
    "class_f1@real",
    "class_f1@synthetic",
    "class_f1@tampered",
    "entanglement",
    "false_positives",
    "giou",
    "image_acc",
    "image_auc",
    "image_f1",
    "image_f1_mvss",
    "pixel_auc",
    "pixel_f1@0.5",
    "pixel_f1@tampered",
    "pixel_f1_benco",
    "pixel_f1_best",
    "pixel_f1_permuted",
    "pixel_f1_pooled",
    "pixel_f1_pooled@tampered",
    "pixel_iou",
    "pixel_iou@tampered",
    "score_mean",
    "tpr@1%fpr",
    "tpr@1%fpr_held_out",
    "video_auc",
]


def value(rows: Sequence[dict[str, Any]], metric: str) -> float | None:
    return metrics.estimate([table(rows)], metric, seed=0, replicates=20).value


# 100 pixels each: a half-found region, a missed one, an authentic image with a false alarm, a clean one
FOUR = [counts(10, 10, 10, 70), counts(0, 5, 20, 75), counts(0, 4, 0, 96), counts(0, 0, 0, 100)]


@pytest.mark.parametrize(
    ("metric", "expected", "n"),
    [
        # 2*10/(2*10+10+10) = 0.5 and 0, over the two manipulated images
        ("pixel_f1@0.5", 0.25, 2),
        # 10/30 and 0
        ("pixel_iou", 1 / 6, 2),
        # tp 10, fp 10+5+4 = 19, fn 30: 20/(20+19+30)
        ("pixel_f1_pooled", 20 / 69, 4),
        # 10/(10+19+30)
        ("ciou", 10 / 59, 4),
        # (10/30 + 0 + 0 + 1)/4
        ("giou", 1 / 3, 4),
        # inverse maps: 2*10/(2*10+70+10) = 0.2 < 0.5; 2*20/(2*20+75+0) = 40/115 > 0
        ("pixel_f1_permuted", (0.5 + 40 / 115) / 2, 2),
        # 0.5, 0, 0 and 0: the authentic image predicted perfectly counts as 0
        ("pixel_f1_benco", 0.125, 4),
    ],
)
def test_counts_by_hand(metric: str, expected: float, n: int) -> None:
    estimate = metrics.estimate([table(FOUR)], metric, seed=0, replicates=20)
    assert estimate.value == pytest.approx(expected, abs=1e-7)
    assert estimate.n == n


def test_stored_image_values_are_averaged_over_the_images_that_have_one() -> None:
    rows = [
        counts(1, 1, 1, 1, pixel_auc=0.5, pixel_f1_best=0.6),
        counts(0, 0, 0, 4),
        counts(4, 0, 0, 0, pixel_f1_best=1.0),
        counts(1, 1, 1, 1, pixel_auc=0.8, pixel_f1_best=0.7),
    ]
    assert value(rows, "pixel_auc") == pytest.approx(0.65)
    assert value(rows, "pixel_f1_best") == pytest.approx((0.6 + 1 + 0.7) / 3)


@pytest.mark.parametrize("metric", IDS)
def test_no_output_no_value(metric: str) -> None:
    estimate = metrics.estimate([table([{"label": 0}, {"label": 1}])], metric, seed=0, replicates=5)
    assert (estimate.value, estimate.ci_low, estimate.ci_high, estimate.n) == (None, None, None, 0)


@pytest.mark.parametrize("metric", IDS)
def test_no_rows_no_value(metric: str) -> None:
    assert metrics.estimate([table([])], metric, seed=0, replicates=5).value is None


@pytest.mark.parametrize("step", [None, 0.1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_image_metrics_equal_scikit_learn(seed: int, step: float | None) -> None:
    rows, label, score = scored(150, seed, step)
    over = score > 0.5
    assert value(rows, "image_acc") == pytest.approx(accuracy_score(label, over))
    assert value(rows, "image_f1") == pytest.approx(f1_score(label, over))
    assert value(rows, "image_auc") == pytest.approx(roc_auc_score(label, score))
    assert value(rows, "video_auc") == pytest.approx(roc_auc_score(label, score))
    sensitivity, specificity = recall_score(label, over), recall_score(1 - label, ~over)
    expected = 2 * sensitivity * specificity / (sensitivity + specificity)
    assert value(rows, "image_f1_mvss") == pytest.approx(expected)
    macro = {"average": "macro", "zero_division": 0}
    expected = precision_score(label, over, **macro) * recall_score(label, over, **macro)
    assert value(rows, "auc_sida") == pytest.approx(expected)
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    assert value(rows, "tpr@1%fpr") == pytest.approx(tpr[np.sum(fpr <= 0.01) - 1])


def test_bootstrap_weights_mean_repeated_rows() -> None:
    rows, label, score = scored(60, 5, 0.1)
    columns = metrics.Columns.of(table(rows))
    weights = np.random.default_rng(0).integers(0, 4, (3, 60)).astype(float)
    for metric in ("image_auc", "video_auc", "image_acc", "image_f1", "tpr@1%fpr", "auc_sida"):
        found = metrics.load(metric).value(columns, weights)
        for one, number in zip(weights, found, strict=True):
            times = one.astype(int)
            repeated = [row for row, count in zip(rows, times, strict=True) for _ in range(count)]
            assert number == pytest.approx(value(repeated, metric)), metric
        if metric == "image_auc":
            assert found[0] == pytest.approx(roc_auc_score(label, score, sample_weight=weights[0]))


def test_score_of_exactly_half_is_not_manipulated() -> None:
    rows = [{"label": 0, "score": 0.5}, {"label": 1, "score": 0.75}]
    assert value(rows, "image_acc") == 1.0
    assert value(rows, "image_f1") == 1.0


def test_mvss_by_hand() -> None:
    # manipulated: 3 of 4 flagged (0.75); authentic: 1 of 2 cleared (0.5); 2*0.75*0.5/1.25 = 0.6
    rows = [{"label": 1, "score": s} for s in (0.9, 0.8, 0.7, 0.1)] + [{"label": 0, "score": s} for s in (0.2, 0.6)]
    assert value(rows, "image_f1_mvss") == pytest.approx(0.6)
    # nothing flagged right, nothing cleared right: 0, not undefined
    assert value([{"label": 1, "score": 0.1}, {"label": 0, "score": 0.9}], "image_f1_mvss") == 0.0


def test_one_class_leaves_rank_metrics_undefined() -> None:
    rows = [{"label": 1, "score": 0.3}, {"label": 1, "score": 0.9}]
    for metric in ("image_auc", "video_auc", "image_f1_mvss", "auc_sida", "tpr@1%fpr", "tpr@1%fpr_held_out"):
        assert value(rows, metric) is None, metric
    assert value([{"label": 0, "score": 0.9}], "image_f1") is None


def three(kind: str, probabilities: list[float]) -> dict[str, Any]:
    """An image of a method that tells three classes apart; its score is 1 - P(real)."""
    label = int(kind != "authentic")
    return {"kind": kind, "label": label, "class_probs": probabilities, "score": 1 - probabilities[0]}


# real as real, real as synthetic, synthetic as synthetic, tampered as tampered, tampered as real
FIVE = [
    three("authentic", [0.8, 0.1, 0.1]),
    three("authentic", [0.2, 0.7, 0.1]),
    three("generated", [0.1, 0.8, 0.1]),
    three("regenerated", [0.0, 0.1, 0.9]),
    three("splice", [0.4, 0.3, 0.3]),
]


def test_auc_sida_of_three_classes() -> None:
    # precision 1/2, 1/2, 1 (mean 2/3); recall 1/2, 1, 1/2 (mean 2/3)
    assert value(FIVE, "auc_sida") == pytest.approx(4 / 9)
    # without the last: precision 1, 1/2, 1 (mean 5/6); recall 1/2, 1, 1 (mean 5/6)
    assert value(FIVE[:4], "auc_sida") == pytest.approx(25 / 36)
    beside = [{**row, "key": f"k{i}"} for i, row in enumerate([*FIVE[:4], {"label": 1, "score": 0.0}])]
    assert value(beside, "auc_sida") == pytest.approx(25 / 36)


def test_three_classes_against_two_labels() -> None:
    # called authentic: the first and the last, though the last one's score is 0.6
    assert value(FIVE, "image_acc") == pytest.approx(3 / 5)
    # tp 2, fp 1, fn 1
    assert value(FIVE, "image_f1") == pytest.approx(4 / 6)
    # sensitivity 2/3, specificity 1/2
    assert value(FIVE, "image_f1_mvss") == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    confused = [three("generated", [0.1, 0.1, 0.8]), three("splice", [0.1, 0.8, 0.1])]
    assert value(confused, "image_acc") == 1.0, "which forgery it is does not matter here"


def test_false_positives_of_scores_and_of_classes() -> None:
    assert value(FIVE, "false_positives") == pytest.approx(1 / 2)
    assert metrics.estimate([table(FIVE)], "false_positives", seed=0, replicates=5).n == 2
    scored_only = [{"label": 0, "score": s} for s in (0.5, 0.6, 0.9, 0.1)] + [{"label": 1, "score": 0.9}]
    assert value(scored_only, "false_positives") == pytest.approx(2 / 4)
    assert value([{"label": 1, "score": 0.9}], "false_positives") is None


def test_of_tampered_images_alone() -> None:
    # a tampered image, one with nothing found, an authentic one with a false alarm, a generated one wholly found
    rows = [counts(10, 10, 10, 70), counts(0, 5, 20, 75), counts(0, 4, 0, 96), counts(100, 0, 0, 0, kind="generated")]
    assert value(rows, "ciou@tampered") == pytest.approx(10 / 55)
    assert value(rows, "pixel_f1_pooled@tampered") == pytest.approx(20 / 65)
    assert value(rows, "pixel_iou@tampered") == pytest.approx((10 / 30) / 2)
    assert value(rows, "pixel_f1@tampered") == pytest.approx((20 / 40) / 2)
    for metric in ("ciou@tampered", "pixel_f1_pooled@tampered", "pixel_iou@tampered", "pixel_f1@tampered"):
        assert metrics.estimate([table(rows)], metric, seed=0, replicates=5).n == 2
        assert value(rows[2:], metric) is None
    assert value(rows, "ciou") == pytest.approx(110 / 159), "this one counts them all"


def states(points: Sequence[Sequence[float]], kinds: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "label": int(kind != "authentic"), "signals": {f"state_{i}": v for i, v in enumerate(point)}}
        for point, kind in zip(points, kinds, strict=True)
    ]


def test_entanglement_by_hand() -> None:
    # three points a line apart: each has the two others as neighbours
    rows = states([[0, 0], [1, 0], [2, 0]], ["authentic", "splice", "generated"])
    # real: one tampered of two; tampered: one real of two; the synthetic one does not count
    assert value(rows, "entanglement") == pytest.approx(1 / 2)
    assert metrics.estimate([table(rows)], "entanglement", seed=0, replicates=5).n == 2
    assert value(states([[0.0], [1.0]], ["authentic", "generated"]), "entanglement") is None
    assert value([{"label": 1}, {"label": 0}], "entanglement") is None
    assert value([{"label": 1, "signals": {"margin": 1.0}}, {"label": 0}], "entanglement") is None


def test_entanglement_against_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    kinds = np.array(["authentic", "splice", "generated"])[rng.integers(0, 3, 90)]
    points = rng.normal(size=(90, 12)) + (kinds == "splice")[:, None] * 0.4
    near = NearestNeighbors(n_neighbors=11).fit(points).kneighbors(points, return_distance=False)[:, 1:]
    other = {"authentic": "splice", "splice": "authentic"}
    expected = np.mean([np.mean(kinds[n] == other[k]) for n, k in zip(near, kinds, strict=True) if k in other])
    assert value(states(points.tolist(), kinds.tolist()), "entanglement") == pytest.approx(expected)
    apart = np.where((kinds == "splice")[:, None], points + 100, points)
    assert value(states(apart.tolist(), kinds.tolist()), "entanglement") == 0.0


def test_a_mean_of_columns_weighs_columns_alike() -> None:
    rows = [{"label": 1, "score": s, "key": f"k{i}"} for i, s in enumerate((0.9, 0.1, 0.9, 0.9))]
    one, two, three_ = (table([row]) for row in rows[:3])
    whole = metrics.of_columns([[([one], "image_acc"), ([two], "image_acc")], [([three_], "image_f1")]], seed=0)
    assert (whole.value, whole.n) == (pytest.approx((1 / 2 + 1) / 2), 3)
    parts = [([one], "image_acc"), ([two], "image_acc"), ([three_], "image_acc")]
    assert metrics.of_columns([parts], seed=0) == metrics.average(parts, seed=0)
    again = table([{**rows[0], "score": 0.1}], seed=1)
    seeds_apart = metrics.of_columns([[([one, again], "image_acc")], [([three_], "image_f1")]], seed=0)
    assert (seeds_apart.value, seeds_apart.n_seeds, seeds_apart.seed_sd) == (pytest.approx(0.75), 1, None)
    with pytest.raises(ValueError, match="no columns"):
        metrics.of_columns([[]], seed=0)


def test_video_auc_averages_frames() -> None:
    # videos a (0.9, 0.1: mean 0.5, manipulated), b (0.4, 0.4, manipulated), c (0.45, authentic), d (0.2, authentic)
    # pairs: a>c, a>d, b<c, b>d: 3 of 4. By frames it would be another number.
    frames = [("a", 1, 0.9), ("a", 1, 0.1), ("b", 1, 0.4), ("b", 1, 0.4), ("c", 0, 0.45), ("d", 0, 0.2)]
    rows = [{"unit": unit, "label": label, "score": score} for unit, label, score in frames]
    assert value(rows, "video_auc") == pytest.approx(0.75)
    assert value(rows, "image_auc") == pytest.approx(4 / 8)  # 0.9 beats two, each 0.4 one, 0.1 none


def test_tpr_by_hand() -> None:
    # 200 negatives at 0 .. 0.199: two may be at or above the threshold, so it is the score above 0.197
    rows = [{"label": 0, "score": i / 1000} for i in range(200)]
    rows += [{"label": 1, "score": s} for s in (0.9, 0.198, 0.1975, 0.197, 0.0)]
    assert value(rows, "tpr@1%fpr") == pytest.approx(3 / 5)
    # with 99 negatives none may pass
    rows = [{"label": 0, "score": i / 1000} for i in range(99)] + [{"label": 1, "score": s} for s in (0.098, 0.0985)]
    assert value(rows, "tpr@1%fpr") == pytest.approx(0.5)


def test_tpr_held_out_uses_one_half_of_the_negatives() -> None:
    rows = [{"key": f"n{i:03}", "label": 0, "score": i / 1000} for i in range(300)]
    rows += [{"key": f"p{i:03}", "label": 1, "score": i / 1000 + 0.1505} for i in range(200)]
    kept = [i for i in range(300) if seeds.fraction(0, f"photo-n{i:03}", "calibration") < 0.5]
    assert 100 < len(kept) < 200
    # one of the 100 to 199 kept negatives may pass: the positives above the second highest are found
    expected = np.mean([i + 150.5 > kept[-2] for i in range(200)])
    assert value(rows, "tpr@1%fpr_held_out") == pytest.approx(expected)
    estimate = metrics.estimate([table(rows)], "tpr@1%fpr_held_out", seed=0, replicates=10)
    assert estimate.n == len(kept) + 200


def test_names_and_near_matches() -> None:
    assert metrics.names() == IDS
    for metric in IDS:
        module = metrics.module(metric)
        assert module.METRIC.id == metric
        assert module.VERSION
        assert module.__doc__ is not None
        assert all(word in module.__doc__ for word in ("Averaging:", "Source:"))
        assert metric.startswith(("image", "video", "auc", "tpr")) or all(
            word in module.__doc__ for word in ("Empty masks:", "Resolution:")
        )
    with pytest.raises(ValueError, match=r"'pixel_f1'.*pixel_f1@0\.5"):
        metrics.load("pixel_f1")
    with pytest.raises(ValueError, match="there are attention_gap, auc_sida"):
        metrics.load("zzzzzz")


images = st.lists(st.tuples(*[st.integers(0, 50)] * 4).filter(any), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(images)
def test_identities(cells: list[tuple[int, int, int, int]]) -> None:
    rows = [counts(*cell) for cell in cells]
    columns = metrics.Columns.of(table(rows))
    per_image = {m: metrics.load(m).per_image for m in ("pixel_f1@0.5", "pixel_iou", "pixel_f1_permuted", "giou")}
    f1, iou, permuted, giou = (function(columns) for function in per_image.values() if function)
    valid = ~np.isnan(f1)
    assert np.array_equal(valid, [tp + fn > 0 for tp, _, fn, _ in cells])
    np.testing.assert_allclose(f1[valid], 2 * iou[valid] / (1 + iou[valid]), atol=1e-12)
    assert np.all(permuted[valid] >= f1[valid])
    np.testing.assert_array_equal(giou[valid], iou[valid])
    pooled, ciou = value(rows, "pixel_f1_pooled"), value(rows, "ciou")
    assert (pooled is None) == (ciou is None)
    if pooled is not None and ciou is not None:
        assert pooled == pytest.approx(2 * ciou / (1 + ciou))
    if valid.any():  # Jensen: what `audit` checks printed tables with
        mean_iou = float(np.mean(iou[valid]))
        assert float(np.mean(f1[valid])) <= 2 * mean_iou / (1 + mean_iou) + 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(seed: int, random: Any) -> None:
    rows, _, _ = scored(30, seed, 0.1)
    rng = np.random.default_rng(seed)
    rows = [{**r, **counts(*rng.integers(0, 9, 4).tolist()), "label": r["label"]} for r in rows]
    one = table(rows)
    order = list(range(one.num_rows))
    random.shuffle(order)
    for metric in IDS:
        first = metrics.estimate([one], metric, seed=1, replicates=30)
        assert metrics.estimate([one.take(order)], metric, seed=1, replicates=30) == first


def test_merged_tables_weigh_by_their_images() -> None:
    rng = np.random.default_rng(0)
    cells = [counts(*rng.integers(1, 50, 4).tolist(), key=f"m{i:02}") for i in range(30)]
    one, other = table(cells[:10]), table(cells[10:])
    merged = pa.concat_tables([one, other])
    parts = [metrics.estimate([t], "pixel_f1@0.5", seed=0, replicates=5) for t in (one, other)]
    whole = metrics.estimate([merged], "pixel_f1@0.5", seed=0, replicates=5)
    assert whole.n == 30
    assert parts[0].value is not None
    assert parts[1].value is not None
    assert whole.value == pytest.approx((10 * parts[0].value + 20 * parts[1].value) / 30)
