"""Each rule of the audit on a table that violates it, and on one that is saved by rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit import toy
from unforge import audit

HEAD = "caption: c\nplace: p\nprotocol: catnet\ncolumns:\n"
F1 = "  f1: {label: F1, metric: pixel_f1@0.5, testset: casia1, tolerance: 0.02}\n"
IOU = "  iou: {label: IoU, metric: pixel_iou, testset: casia1, tolerance: 0.02}\n"
AVERAGE = """\
  a: {label: A, metric: pixel_f1@0.5, testset: columbia, tolerance: 0.02}
  b: {label: B, metric: pixel_f1@0.5, testset: coverage, tolerance: 0.02}
  avg: {label: AVG, metric: pixel_f1@0.5, average: [a, b], tolerance: 0.02}
"""
APART = "  avg: {label: AVG, metric: pixel_f1@0.5, testsets: [columbia, coverage], tolerance: 0.02}\n"
PARAMS = "  params: {label: P, metric: params, tolerance: 1.0}\n"
CLASSES = "".join(
    f"  {family}_{name}: {{label: L, metric: class_{family}@{name}, testset: sidset_test, tolerance: 0.02}}\n"
    for name in ("real", "synthetic", "tampered", "macro")
    for family in ("acc", "f1")
)
RATIO = "  ratio: {label: R, metric: params_ratio, relative_to: dense, tolerance: 0.005}\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.make(tmp_path)
    for name in ("table_1", "figure_2", "claims"):
        (tmp_path / f"papers/toy/{name}.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(root: Path, number: int, columns: str, *rows: str) -> None:
    text = HEAD + columns + "rows:\n" + "".join(f"  - {{{row}}}\n" for row in rows)
    (root / f"papers/toy/table_{number}.yaml").write_text(text)


def found() -> list[tuple[str, str, str, str]]:
    return [(row["table"], row["row"], row["column"], row["rule"]) for row in audit.audit().to_pylist()]


def test_f1_above_its_bound_across_tables(root: Path) -> None:
    # IoU 0.500 is below 0.5005, so F1 is at most 2 * 0.5005 / 1.5005 = 0.66711
    table(root, 1, F1, 'id: ours, label: Ours, line: 1, method: sparsevit, printed: ["0.668"]')
    table(root, 2, IOU, 'id: best, label: Best, line: 2, method: sparsevit, printed: ["0.500"]')
    assert found() == [("table_1", "ours", "f1", "f1_above_bound")]
    table(root, 1, F1, 'id: ours, label: Ours, line: 1, method: sparsevit, printed: ["0.667"]')
    assert found() == []


def test_rows_of_different_variants_are_not_compared(root: Path) -> None:
    table(root, 1, F1, 'id: ours, label: Ours, line: 1, method: sparsevit, printed: ["0.9"]')
    table(root, 2, IOU, 'id: ours, label: Ours, line: 2, method: sparsevit, variant: dense, printed: ["0.5"]')
    assert found() == []


def test_cited_rows_are_matched_by_label(root: Path) -> None:
    table(root, 1, F1, 'id: cat, label: CAT-Net, line: 1, printed: ["0.9"]')
    table(root, 2, IOU, 'id: catnet, label: CATNet, line: 2, printed: ["0.5"]')
    assert found() == [("table_1", "cat", "f1", "f1_above_bound")]


def test_f1_below_iou(root: Path) -> None:
    table(
        root,
        1,
        F1 + IOU,
        'id: x, label: X, line: 1, printed: ["0.40", "0.42"]',
        'id: y, label: Y, line: 2, printed: ["0.40", "0.41"]',
    )
    assert found() == [("table_1", "x", "f1", "f1_below_iou")]


def test_a_pair_that_is_printed_again_is_one_finding(root: Path) -> None:
    ours = "method: sparsevit, label: Ours, line: 1, "
    table(root, 1, F1 + IOU, f'id: a, {ours}printed: ["0.9", "0.5"]')
    table(root, 2, F1 + IOU, f'id: b, {ours}printed: ["0.9", "0.5"]')
    table(root, 3, F1, f'id: c, {ours}printed: ["0.9"]')
    assert found() == [("table_1", "a", "f1", "f1_above_bound")]
    assert audit.audit().to_pylist()[0]["detail"].endswith("at most 0.7097, also in table_2 b.f1, table_3 c.f1")


def test_f1_is_held_against_the_iou_of_its_own_table(root: Path) -> None:
    # 0.9 with 0.85 is fine, 0.9 with 0.5 is not, whatever the order of the tables
    ours = "method: sparsevit, label: Ours, line: 1, "
    table(root, 1, F1 + IOU, f'id: a, {ours}printed: ["0.9", "0.85"]')
    table(root, 2, F1 + IOU, f'id: b, {ours}printed: ["0.9", "0.5"]')
    assert [row for row in found() if row[3] == "f1_above_bound"] == [("table_2", "b", "f1", "f1_above_bound")]


def test_average_of_its_own_table(root: Path) -> None:
    # 0.295 may be the mean of 0.196 and 0.393 (0.2945 within rounding), 0.296 may not
    table(
        root,
        1,
        AVERAGE,
        'id: x, label: X, line: 1, printed: ["0.196", "0.393", "0.295"]',
        'id: y, label: Y, line: 2, printed: ["0.196", "0.393", "0.296"]',
    )
    assert found() == [("table_1", "y", "avg", "average")]


def test_average_of_another_table(root: Path) -> None:
    table(root, 1, AVERAGE, 'id: x, label: X, line: 1, printed: ["0.2", "0.4", "0.3"]')
    table(root, 2, APART, 'id: x, label: X, line: 2, printed: ["0.5"]')
    rows = audit.audit().to_pylist()
    assert ("table_2", "x", "avg", "average") in found()
    assert ("table_2", "x", "avg", "contradiction") in found()
    assert any("table_1" in row["detail"] for row in rows)


def test_average_without_its_parts_says_nothing(root: Path) -> None:
    table(root, 1, APART, 'id: x, label: X, line: 2, printed: ["0.5"]')
    table(root, 2, AVERAGE, 'id: z, label: Z, line: 1, printed: ["-", "0.4", "0.9"]')
    assert found() == []


def test_contradiction_between_tables(root: Path) -> None:
    table(root, 1, F1, 'id: x, label: X, line: 1, printed: ["0.842"]', 'id: y, label: Y, line: 2, printed: ["0.842"]')
    table(root, 2, F1, 'id: x, label: X, line: 3, printed: ["0.859"]', 'id: y, label: Y, line: 4, printed: ["0.84"]')
    assert found() == [("table_2", "x", "f1", "contradiction")]
    assert "0.859 here, 0.842 in table_1 x.f1" in audit.audit().to_pylist()[0]["detail"]


def test_two_values_are_one_contradiction_however_often_they_are_printed(root: Path) -> None:
    # 0.59 and 0.60 touch at 0.595, which no rule of rounding prints both ways
    for number, printed in enumerate(("0.59", "0.60", "0.59", "0.60"), 1):
        table(root, number, F1, f'id: x, label: X, line: {number}, printed: ["{printed}"]')
    (row,) = audit.audit().to_pylist()
    assert (row["table"], row["rule"]) == ("table_2", "contradiction")
    assert row["detail"] == "0.60 here, also in table_4 x.f1, 0.59 in table_1 x.f1, table_3 x.f1"


def test_more_digits_are_no_contradiction(root: Path) -> None:
    # 0.595 may be 0.5949 or 0.5951
    table(root, 1, F1, 'id: x, label: X, line: 1, printed: ["0.59"]', 'id: y, label: Y, line: 2, printed: ["0.60"]')
    table(root, 2, F1, 'id: x, label: X, line: 3, printed: ["0.595"]', 'id: y, label: Y, line: 4, printed: ["0.595"]')
    assert found() == []


def test_macro_average_of_the_classes(root: Path) -> None:
    # mean 0.80 of 0.90, 0.70 and 0.80, within 0.005: 0.81 may be 0.805, 0.82 not
    recalls = '"{}", "0.90", "{}", "0.70", "{}", "0.80", "{}", "{}"'.format("0.90", "0.70", "0.80", "0.80", "{}")
    rows = [f"id: m{m}, label: M{m}, line: 1, printed: [{recalls.format(f'0.{m}')}]" for m in (80, 81, 82)]
    table(root, 1, CLASSES, *rows)
    assert found() == [("table_1", "m82", "f1_macro", "average")]


def test_recall_and_f1_of_one_confusion_matrix(root: Path) -> None:
    # of 100 images each, [90 5 5; 10 80 10; 20 0 80]: recall 0.90 0.80 0.80, F1 180/220, 160/185, 160/195
    table(
        root,
        1,
        CLASSES,
        'id: right, label: A, line: 1, printed: ["0.90", "0.82", "0.80", "0.86", "0.80", "0.82", "-", "-"]',
        'id: low, label: B, line: 2, printed: ["0.90", "0.82", "0.80", "0.70", "0.80", "0.82", "-", "-"]',
        'id: high, label: C, line: 3, printed: ["0.90", "0.82", "0.80", "0.99", "0.80", "0.82", "-", "-"]',
        'id: alone, label: D, line: 4, printed: ["0.50", "0.67", "0.80", "0.89", "0.60", "0.75", "-", "-"]',
        'id: two, label: E, line: 5, printed: ["0.50", "0.67", "0.80", "0.89", "-", "-", "-", "-"]',
        'id: zero, label: F, line: 6, printed: ["1.00", "0.50", "0.00", "0.00", "0.00", "0.00", "-", "-"]',
    )
    every = audit.audit().to_pylist()
    assert [(row["row"], row["column"]) for row in every if row["rule"] != "confusion"] == [("high", "f1_synthetic")]
    rows = {row["row"]: row for row in every if row["rule"] == "confusion"}
    assert {name: (row["rule"], row["column"]) for name, row in rows.items()} == {
        "low": ("confusion", "f1_synthetic"),
        "high": ("confusion", "f1_synthetic"),
        "alone": ("confusion", "f1_real"),
    }
    # (0.895 / 0.825 + 0.795 / 0.705 + 0.795 / 0.825) / 3 and (0.905 / 0.815 + 0.805 / 0.985 + 0.805 / 0.815) / 3
    assert "at least 1.059" in rows["low"]["detail"]
    assert "at most 0.972" in rows["high"]["detail"]
    assert "precision 1" in rows["alone"]["detail"]
    assert "precision 1" not in rows["low"]["detail"] + rows["high"]["detail"]


def test_no_confusion_matrix_is_found_wrong(root: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(200):
        counts = np.stack([rng.multinomial(rng.integers(950, 1051), rng.dirichlet(np.ones(3))) for _ in range(3)])
        hits = counts.diagonal()
        recalls, f1s = hits / counts.sum(1), 2 * hits / (counts.sum(0) + counts.sum(1))
        printed = [f'"{value:.2f}"' for pair in zip(recalls, f1s, strict=True) for value in pair]
        rows.append(f'id: r{number}, label: R{number}, line: 1, printed: [{", ".join(printed)}, "-", "-"]')
    table(root, 1, CLASSES, *rows)
    assert found() == []


def test_range(root: Path) -> None:
    table(
        root,
        1,
        F1 + PARAMS,
        'id: x, label: X, line: 1, printed: ["1.2", "3.9M"]',
        'id: y, label: Y, line: 2, printed: ["1.000", "0.00M"]',
        'id: z, label: Z, line: 2, printed: ["-0.1", "-1M"]',
    )
    assert found() == [
        ("table_1", "x", "f1", "range"),
        ("table_1", "z", "f1", "range"),
        ("table_1", "z", "params", "range"),
    ]


def test_ratio(root: Path) -> None:
    rows = (
        'id: d, label: D, line: 1, method: sparsevit, variant: dense, printed: ["100M", "1.00"]',
        'id: x, label: X, line: 2, method: sparsevit, printed: ["110M", "1.10"]',
        'id: y, label: Y, line: 3, method: sparsevit, variant: y, printed: ["110M", "1.20"]',
    )
    table(root, 1, PARAMS + RATIO, *rows)
    assert found() == [("table_1", "y", "ratio", "ratio")]
    table(root, 1, PARAMS + RATIO, rows[0].replace("1.00", "1.02"))
    assert found() == [("table_1", "d", "ratio", "ratio")]


@pytest.mark.parametrize(("ours", "count"), [("0.809", 1), ("0.810", 0), ("0.811", 0)])
def test_claim_against_the_printed_numbers(root: Path, ours: str, count: int) -> None:
    side = "{table: table_1, row: %s, columns: [f1]}"
    text = "seed_sd: {}\nseed_sd_source: none\nclaims:\n  best:\n    text: Ours is best\n    line: 7\n    quote: best\n"
    text += f"    left: {side % 'x'}\n    right: {side % 'd'}\n"
    (root / "papers/toy/claims.yaml").write_text(text)
    table(
        root,
        1,
        F1,
        f'id: x, label: X, line: 1, method: sparsevit, printed: ["{ours}"]',
        'id: d, label: D, line: 2, method: sparsevit, variant: d, printed: ["0.810"]',
    )
    assert found() == [("table_1", "x", "f1", "claim")] * count


@pytest.mark.parametrize(("gain", "count"), [("0.13", 1), ("0.10", 1), ("0.09", 0), ("0.08", 0), ("-0.08", 1)])
def test_gain_that_the_text_states(root: Path, gain: str, count: int) -> None:
    # 0.74 - 0.66 lies between 0.07 and 0.09; 0.10 is at least 0.095
    side = "{table: table_1, row: %s, columns: [f1]}"
    text = "seed_sd: {}\nseed_sd_source: none\nclaims:\n  best:\n    text: Ours is best\n    line: 7\n    quote: best\n"
    text += f"    left: {side % 'x'}\n    right: {side % 'd'}\n    gain: '{gain}'\n"
    (root / "papers/toy/claims.yaml").write_text(text)
    table(
        root,
        1,
        F1,
        'id: x, label: X, line: 1, method: sparsevit, printed: ["0.74"]',
        'id: d, label: D, line: 2, method: sparsevit, variant: d, printed: ["0.66"]',
    )
    assert found() == [("table_1", "x", "f1", "gain")] * count


def test_files_are_byte_stable_and_readable(root: Path) -> None:
    table(root, 1, F1, 'id: x, label: X | Y, line: 1, printed: ["1.2"]')
    for name in ("one", "two"):
        audit.write(audit.audit(), root / name)
    for suffix in ("parquet", "md"):
        assert (root / f"one.{suffix}").read_bytes() == (root / f"two.{suffix}").read_bytes()
    assert "| table_1 | x | f1 | range | 1.2 is outside [0,1] |" in (root / "one.md").read_text()
    table(root, 1, F1, 'id: x, label: X, line: 1, printed: ["0.2"]')
    assert "Nothing found in 1 printed numbers." in audit.text(audit.audit())
