"""Each rule of the audit on a table that violates it, and on one that is saved by rounding."""

from __future__ import annotations

from pathlib import Path

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


def test_files_are_byte_stable_and_readable(root: Path) -> None:
    table(root, 1, F1, 'id: x, label: X | Y, line: 1, printed: ["1.2"]')
    for name in ("one", "two"):
        audit.write(audit.audit(), root / name)
    for suffix in ("parquet", "md"):
        assert (root / f"one.{suffix}").read_bytes() == (root / f"two.{suffix}").read_bytes()
    assert "| table_1 | x | f1 | range | 1.2 is outside [0,1] |" in (root / "one.md").read_text()
    table(root, 1, F1, 'id: x, label: X, line: 1, printed: ["0.2"]')
    assert "Nothing found in 1 printed numbers." in audit.text(audit.audit())
