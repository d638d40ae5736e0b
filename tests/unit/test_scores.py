"""`scores`: pixel statistics against scikit-learn and brute force, and the Parquet rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter
from sklearn.metrics import f1_score, jaccard_score, precision_recall_curve, roc_auc_score

from unforge import scores
from unforge.scores import BINS, TOLERANCE, pixel_statistics


def exact_best(p: np.ndarray, m: np.ndarray) -> float:
    """Largest F1 over every distinct score as threshold, from scikit-learn's curve."""
    precision, recall, _ = precision_recall_curve(m.ravel(), p.ravel())
    total = precision + recall
    return float(np.max(2 * precision * recall / np.where(total == 0, 1, total)))


def check(p: np.ndarray, m: np.ndarray) -> scores.PixelStatistics:
    """Every number of one image against scikit-learn; both classes present."""
    p = p.astype(np.float32)
    found = pixel_statistics(p, m)
    over = p > 0.5
    assert (found.tp, found.fp) == (int((over & m).sum()), int((over & ~m).sum()))
    assert (found.fn, found.tn) == (int((~over & m).sum()), int((~over & ~m).sum()))
    assert found.auc == pytest.approx(roc_auc_score(m.ravel(), p.ravel()), abs=TOLERANCE)
    best = exact_best(p, m)
    assert found.f1_best is not None
    assert best - TOLERANCE <= found.f1_best <= best + 1e-9
    assert found.hist_pos.shape == found.hist_neg.shape == (BINS,)
    assert int(found.hist_pos.sum()) == int(m.sum())
    assert int(found.hist_neg.sum()) == int((~m).sum())
    assert (int(found.hist_pos[128:].sum()), int(found.hist_neg[128:].sum())) == (found.tp, found.fp)
    pos, neg = found.hist_pos.astype(float), found.hist_neg.astype(float)
    binned = float(np.sum(neg * (pos.sum() - np.cumsum(pos) + pos / 2)) / (pos.sum() * neg.sum()))
    assert found.auc_bound == pytest.approx(float(pos @ neg) / (2 * pos.sum() * neg.sum()))
    assert abs(binned - found.auc) <= found.auc_bound + TOLERANCE
    assert pixel_statistics(p, m, best=False).auc == pytest.approx(found.auc, abs=TOLERANCE)
    return found


def example(seed: int, size: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a weak detector, and the mask."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    mask = ((y - 0.45) / 0.2) ** 2 + ((x - 0.55) / 0.13) ** 2 < 1
    noise = gaussian_filter(rng.normal(size=mask.shape), 3) * 9 + rng.normal(size=mask.shape) * 0.8
    return gaussian_filter(mask.astype(float), 5) * 3 - 2 + noise, mask


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-np.clip(logit, -200, 200)))).astype(np.float32)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1, 4, 12, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_ordinary_and_saturated_scores(seed: int, scale: float) -> None:
    logit, mask = example(seed)
    check(sigmoid(logit * scale), mask)


@pytest.mark.parametrize(
    ("factor", "offset"),
    [(0.1, 0.2), (0.01, 0.9), (1e-3, 0.4995), (1e-6, 0.25), (1e-42, 0.0), (1e-4, 0.9999), (0.004, 0.996)],
)
def test_scores_crowded_into_few_bins(factor: float, offset: float) -> None:
    logit, mask = example(3)
    check(np.clip(sigmoid(logit).astype(np.float64) * factor + offset, 0, 1), mask)


def test_inverted_and_half_size_masks() -> None:
    logit, mask = example(4)
    check(sigmoid(logit), ~mask)
    check(1 - sigmoid(logit), mask)


def test_f1_and_iou_equal_scikit_learn() -> None:
    logit, mask = example(5)
    p = sigmoid(logit)
    s = pixel_statistics(p, mask)
    assert 2 * s.tp / (2 * s.tp + s.fp + s.fn) == pytest.approx(f1_score(mask.ravel(), p.ravel() > 0.5), abs=1e-15)
    assert s.tp / (s.tp + s.fp + s.fn) == pytest.approx(jaccard_score(mask.ravel(), p.ravel() > 0.5), abs=1e-15)


def test_exact_half_is_not_above() -> None:
    just_above = np.nextafter(np.float32(0.5), np.float32(1))
    p = np.array([[0.5, just_above, 0.5, just_above]], dtype=np.float32)
    s = pixel_statistics(p, np.array([[True, True, False, False]]))
    assert (s.tp, s.fp, s.fn, s.tn) == (1, 1, 1, 1)
    assert s.auc == 0.5
    assert (s.hist_pos[127], s.hist_pos[128], s.hist_neg[127], s.hist_neg[128]) == (1, 1, 1, 1)


def test_adjoining_floats_are_told_apart() -> None:
    # four neighbours above 0.25 and above 0.75: they share 16 leading bits, the order is only in the last ones
    for start in (0.25, 0.75):
        steps = [np.float32(start)]
        for _ in range(3):
            steps.append(np.nextafter(steps[-1], np.float32(1)))
        s = pixel_statistics(np.array([steps], dtype=np.float32), np.array([[False, True, False, True]]))
        assert s.auc == 0.75  # of the four pairs only (second, third) is ranked wrongly
        assert s.f1_best == pytest.approx(0.8)  # lowest positive as threshold: 2 of 2 found, 1 false


@pytest.mark.parametrize("value", [0.0, 1e-45, 0.3, 0.5, 0.7, 1.0])
def test_constant_scores_rank_nothing(value: float) -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[:5] = True
    s = check(np.full(mask.shape, value), mask)
    assert s.auc == 0.5
    # everything predicted: 150 hits of 600, F1 = 300 / (150 + 600)
    assert s.f1_best == pytest.approx(0.4)


def test_hard_mask() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((40, 40)) < 0.3
    p = np.where(rng.random((40, 40)) < 0.1, ~mask, mask).astype(np.float32)
    s = check(p, mask)
    assert s.f1_best == pytest.approx(f1_score(mask.ravel(), p.ravel() > 0.5))


def test_zero_and_one_do_not_meet() -> None:
    s = pixel_statistics(np.array([[0.0, 1.0, 1e-45, 1 - 2**-24]], dtype=np.float32), np.array([[0, 1, 0, 1]], bool))
    assert (s.auc, s.f1_best, s.tp, s.tn) == (1.0, 1.0, 2, 2)
    assert (s.hist_neg[0], s.hist_pos[255]) == (2, 2)


def test_negative_zero_is_zero() -> None:
    mask = np.array([[True, False, False]])
    plain = pixel_statistics(np.array([[0.2, 0.0, 0.0]], dtype=np.float32), mask)
    signed = pixel_statistics(np.array([[0.2, -0.0, 0.0]], dtype=np.float32), mask)
    assert (signed.auc, signed.tn, signed.f1_best) == (plain.auc, plain.tn, plain.f1_best) == (1.0, 2, 1.0)


def test_one_pixel_mask() -> None:
    p = np.arange(100, dtype=np.float32).reshape(10, 10) / 200
    mask = np.zeros((10, 10), dtype=bool)
    mask[9, 4] = True  # five of the 99 others score higher
    s = check(p, mask)
    assert s.auc == pytest.approx(94 / 99)
    assert s.f1_best == pytest.approx(2 / 7)  # threshold at the pixel: 1 hit, 5 false; 2 / (2 + 5)


def test_one_class_only() -> None:
    p = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    empty = pixel_statistics(p, np.zeros((8, 8), dtype=bool))
    assert (empty.auc, empty.f1_best, empty.auc_bound, empty.tp + empty.fn) == (None, None, None, 0)
    full = pixel_statistics(p, np.ones((8, 8), dtype=bool))
    assert (full.auc, full.f1_best, full.auc_bound, full.fp + full.tn) == (None, 1.0, None, 0)
    assert full.tp == int((p > 0.5).sum())


def test_image_larger_than_a_chunk_and_not_contiguous() -> None:
    rng = np.random.default_rng(1)
    p = rng.random((900, 1300)).astype(np.float32)
    mask = rng.random(p.shape) < p * 0.4
    assert p.size > 2 * scores._CHUNK
    plain = check(p, mask)
    turned = pixel_statistics(np.asfortranarray(p), np.asfortranarray(mask))
    assert (turned.tp, turned.auc, turned.f1_best) == (plain.tp, plain.auc, plain.f1_best)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(2, 40).flatmap(
        lambda n: st.tuples(
            hnp.arrays(np.float32, (1, n), elements=st.floats(0, 1, width=32)), hnp.arrays(np.bool_, (1, n))
        )
    )
)
def test_any_scores_are_exact_up_to_the_tolerance(case: tuple[np.ndarray, np.ndarray]) -> None:
    p, m = case
    if 0 < m.sum() < m.size:
        check(p, m)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 8), st.floats(-3, 3))
def test_auc_ignores_monotone_maps(seed: int, slope: float, shift: float) -> None:
    logit, mask = example(seed, 48)
    one, other = pixel_statistics(sigmoid(logit), mask), pixel_statistics(sigmoid(logit * slope + shift), mask)
    assert one.auc == pytest.approx(other.auc, abs=2 * TOLERANCE)
    assert one.f1_best == pytest.approx(other.f1_best, abs=2 * TOLERANCE)
    assert one.f1_best is not None
    assert one.f1_best >= 2 * one.tp / (2 * one.tp + one.fp + one.fn) - TOLERANCE


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 47))
def test_tiles_add_up(seed: int, cut: int) -> None:
    logit, mask = example(seed, 48)
    p = sigmoid(logit)
    whole, top, bottom = (pixel_statistics(p[rows], mask[rows]) for rows in (slice(None), slice(cut), slice(cut, None)))
    for name in ("tp", "fp", "fn", "tn"):
        assert getattr(whole, name) == getattr(top, name) + getattr(bottom, name)
    assert np.array_equal(whole.hist_pos, top.hist_pos + bottom.hist_pos)
    assert np.array_equal(whole.hist_neg, top.hist_neg + bottom.hist_neg)


def test_bins_are_an_eighth_of_a_logit_and_symmetric() -> None:
    for logit, expected in [(-20, 0), (-15.94, 0), (-15.8, 1), (-0.0625, 127), (0.0625, 128), (3.3, 154), (14.1, 240)]:
        s = pixel_statistics(sigmoid(np.array([[logit]], dtype=np.float64)), np.array([[True]]))
        assert s.hist_pos.tolist().index(1) == expected, logit


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-6, 1.0000001, 2.0])
def test_not_a_probability(value: float) -> None:
    p = np.full((3, 4), 0.2, dtype=np.float32)
    p[1, 2] = value
    with pytest.raises(ValueError, match="outside"):
        pixel_statistics(p, np.zeros((3, 4), dtype=bool))


@pytest.mark.parametrize(
    ("p", "m"),
    [
        (np.zeros((2, 2)), np.zeros((2, 2), bool)),
        (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8)),
        (np.zeros((2, 2), np.float32), np.zeros((2, 3), bool)),
        (np.zeros(4, np.float32), np.zeros(4, bool)),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), bool)),
    ],
)
def test_wrong_arrays(p: np.ndarray, m: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        pixel_statistics(p, m)


def row(key: str, **values: Any) -> dict[str, Any]:
    fixed = {"unit": key, "source": ["photo"], "seed": 0, "testset": "set", "label": 1, "kind": "splice"}
    made = {"width": 4, "height": 4, "data": "stand_in", "run": "run", "run_sha256": "a", "testset_sha256": "b"}
    return {"key": key, **fixed, **made, "testset_version": "1", **values}


def test_rows_come_back(tmp_path: Path) -> None:
    p = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    columns = pixel_statistics(p, p > 0.7).columns()
    rows = [
        row("b", score=0.25, class_probs=[0.5, 0.25, 0.25], signals={"z": 2.0, "a": 1.5}, source=["p2", "p1"]),
        row("a", label=0, **columns),
    ]
    scores.write(tmp_path / "deep" / "scores.parquet", rows, {"run": "run", "seed": 0})
    back = scores.read(tmp_path / "deep" / "scores.parquet")
    assert back.schema.equals(scores.SCHEMA)
    assert scores.metadata(back) == {"run": "run", "seed": 0, "schema_version": scores.SCHEMA_VERSION}
    first, second = back.to_pylist()
    assert (first["key"], first["tp"], first["score"], first["hist_pos"]) == (
        "a",
        columns["tp"],
        None,
        columns["hist_pos"].tolist(),
    )
    assert second["source"] == ["p2", "p1"]
    assert second["signals"] == [("a", 1.5), ("z", 2.0)]
    assert (second["tp"], second["pixel_auc"], second["class_probs"]) == (None, None, [0.5, 0.25, 0.25])
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["scores.parquet"]


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    rows = [row(f"k{i}", score=i / 50, signals={"b": 1.0, "a": float(i)}) for i in range(50)]
    scores.write(tmp_path / "one", rows, {"run": "r", "seed": 1})
    swapped = [{k: r[k] for k in reversed(r)} for r in reversed(rows)]
    scores.write(tmp_path / "two", swapped, {"seed": 1, "run": "r"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a"), row("a")], "two score rows"),
        ([row("a", extra=1)], "unknown columns"),
        ([{k: v for k, v in row("a").items() if k != "label"}], "missing"),
    ],
)
def test_wrong_rows(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores.write(tmp_path / "x", rows, {})
    assert not list(tmp_path.iterdir())


def test_other_versions_are_refused(tmp_path: Path) -> None:
    rows = scores.table([row("a")], {"run": "r"})
    old = rows.replace_schema_metadata({"unforge": '{"schema_version": 0}'})
    pq.write_table(old, tmp_path / "old")
    with pytest.raises(ValueError, match=r"old: score rows of schema version 0.*evaluate the run again"):
        scores.read(tmp_path / "old")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "foreign")
    with pytest.raises(ValueError, match="not a table of score rows"):
        scores.read(tmp_path / "foreign")
    pq.write_table(rows.drop_columns(["fp"]), tmp_path / "short")
    with pytest.raises(ValueError, match=r"columns \['fp'\] are missing"):
        scores.read(tmp_path / "short")


def test_no_rows(tmp_path: Path) -> None:
    scores.write(tmp_path / "none", [], {"run": "r"})
    assert scores.read(tmp_path / "none").num_rows == 0
