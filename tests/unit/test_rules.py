"""Rules on numbers that are printed in percent, with gains, or of fake against real, by hand. Others: `test_audit`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import toy
from unforge import audit, rules, specs

HEAD = "caption: C\nplace: nowhere\nprotocol: catnet\npercent: true\ncolumns:\n"
CLASSES = "".join(
    f"  {name}: {{label: L, metric: class_acc@{name}, testset: sidset_test, tolerance: 0.02}}\n"
    for name in ("real", "synthetic", "tampered", "total")
)
BINARY = """\
  f1: {label: F1, metric: image_f1, testset: casia1, tolerance: 0.02}
  acc: {label: Acc, metric: image_acc, testset: casia1, tolerance: 0.02}
"""
FOUR = "".join(
    f"  {t}: {{label: L, metric: image_acc, testset: {t}, tolerance: 0.02}}\n"
    for t in ("casia1", "columbia", "coverage", "nist16")
)
MEAN = """\
  iou: {label: I, metric: pixel_iou, testset: columbia, tolerance: 0.02}
  acc: {label: A, metric: image_acc, testset: casia1, tolerance: 0.02}
  avg: {label: M, metric: mean, average: [iou, acc], tolerance: 0.02}
"""
POOLED = """\
  f1: {label: F1, metric: pixel_f1_pooled@tampered, testset: sidset_test, tolerance: 0.02}
  iou: {label: IoU, metric: ciou@tampered, testset: sidset_test, tolerance: 0.02}
"""


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


def found() -> list[tuple[str, str, str]]:
    return [(row["row"], row["column"], row["rule"]) for row in audit.audit().to_pylist()]


def test_percent_is_read_as_a_share(root: Path) -> None:
    table(root, 1, BINARY, 'id: a, label: A, line: 1, printed: ["80.0", "75.7%"]')
    f1, acc = audit.printed("toy")
    assert (f1.low, f1.high) == (pytest.approx(0.7995), pytest.approx(0.8005))
    assert (acc.low, acc.high) == (pytest.approx(0.7565), pytest.approx(0.7575))
    assert found() == []
    table(root, 1, BINARY, 'id: a, label: A, line: 1, printed: ["80.0", "100.2"]')
    assert ("a", "acc", "range") in found()


def test_total_accuracy_is_a_mean_of_the_classes(root: Path) -> None:
    # 90, 60, 90: with 60 weighed 1.05 and 90 0.95 it is 234 / 2.95 = 79.32, the other way 246 / 3.05 = 80.66
    for printed, expected in (("80.0", []), ("80.7", []), ("79.3", []), ("80.8", ["total"]), ("79.2", ["total"])):
        table(root, 1, CLASSES, f'id: a, label: A, line: 1, printed: ["90.0", "60.0", "90.0", "{printed}"]')
        assert [rule for _, _, rule in found()] == expected, printed


def test_f1_of_fake_against_real_is_bounded_by_accuracy(root: Path) -> None:
    # 2 * 0.7575 / 1.7575 = 0.86202: 86.2 may be 86.15, 86.3 is at least 86.25
    table(
        root,
        1,
        BINARY,
        'id: a, label: A, line: 1, printed: ["86.2", "75.7"]',
        'id: b, label: B, line: 2, printed: ["86.3", "75.7"]',
    )
    assert found() == [("b", "f1", "f1_above_accuracy")]


def test_f1_of_a_class_is_bounded_by_recall(root: Path) -> None:
    # every image called so is so, half of them are found: F1 is 2/3, and no F1 is above
    columns = CLASSES + "  f1: {label: F, metric: class_f1@synthetic, testset: sidset_test, tolerance: 0.02}\n"
    table(
        root,
        1,
        columns,
        'id: a, label: A, line: 1, printed: ["-", "50.0", "-", "-", "66.7"]',
        'id: b, label: B, line: 2, printed: ["-", "50.0", "-", "-", "66.9"]',
    )
    assert found() == [("b", "f1", "f1_above_recall")]


def test_gains_beside_numbers(root: Path) -> None:
    off = 'id: bare, label: Bare, line: 1, printed: ["88.31%", "90.00%", "-", "70.00%"]'
    values = '"91.56%(+3.25)", "89.08%(-0.92)", "80.00%(+1.00)", {}'
    on = f"id: ours, label: Ours, line: 2, gain_over: bare, printed: [{values}]"
    table(root, 1, FOUR, off, on.format('"73.10%(+3.1)"'))
    assert found() == []
    table(root, 1, FOUR, off, on.format('"73.10%(+3.2)"'))
    assert found() == [("ours", "nist16", "gain")]
    assert audit.audit().to_pylist()[0]["detail"].endswith("the difference is 3.10")


def test_a_row_under_another_name(root: Path) -> None:
    table(root, 1, FOUR, 'id: sida, label: SIDA, line: 1, printed: ["91.2", "88.7", "77.7", "80.2"]')
    table(
        root,
        2,
        FOUR,
        'id: bare, label: Ours without, line: 2, printed: ["91.17%", "88.70%", "77.65%", "80.20%"]',
        'id: ours, label: Ours, line: 3, printed: ["91.17%", "88.70%", "77.65%", "80.30%"]',
    )
    (row,) = audit.audit().to_pylist()
    assert (row["table"], row["row"], row["rule"]) == ("table_2", "bare", "same_row")
    assert "table_1 sida" in row["detail"]
    # three numbers that agree are not enough
    table(root, 2, FOUR, 'id: bare, label: Ours without, line: 2, printed: ["91.17%", "88.70%", "77.65%", "-"]')
    assert found() == []


def test_mean_of_two_columns(root: Path) -> None:
    table(
        root,
        1,
        MEAN,
        'id: a, label: A, line: 1, printed: ["39.23", "43.80", "41.52"]',
        'id: b, label: B, line: 2, printed: ["39.23", "43.80", "41.53"]',
    )
    assert found() == [("b", "avg", "average")]


def test_pooled_f1_and_iou(root: Path) -> None:
    # F1 of the same pixels is 2 IoU / (1 + IoU) = 0.7245 for 0.568: above is impossible
    table(root, 1, POOLED, 'id: a, label: A, line: 1, printed: ["72.4", "56.8"]')
    assert found() == []
    table(root, 1, POOLED, 'id: a, label: A, line: 1, printed: ["72.7", "56.8"]')
    assert found() == [("a", "f1", "f1_above_bound")]


def test_every_rule_is_used_and_says_what_it_is() -> None:
    assert len(set(rules.RULES)) == len(rules.RULES)
    assert all(rule.__doc__ for rule in rules.RULES)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('id: a, label: A, line: 1, gain_over: none, printed: ["1", "1", "1", "1"]', "none"),
        ("id: a, label: A, method: sparsevit, only: [nowhere]", "nowhere"),
    ],
)
def test_rows_name_what_is_there(root: Path, row: str, message: str) -> None:
    table(root, 1, FOUR, row)
    with pytest.raises(ValueError, match=message):
        specs.tables("toy")
