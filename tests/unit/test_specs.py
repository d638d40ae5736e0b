"""The YAML of papers: numbers as printed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import toy
from unforge import specs


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("printed", "value", "half"),
    [
        ("0.513", 0.513, 0.0005),
        ("1.00", 1.0, 0.005),
        ("50.3M", 50_300_000.0, 50_000.0),
        ("46.2G", 46_200_000_000.0, 50_000_000.0),
        ("274.0G", 274e9, 50_000_000.0),
        ("85", 85.0, 0.5),
        ("512×512", 512.0, 0.0),
        ("256x256", 256.0, 0.0),
        ("-", None, 0.0),
    ],
)
def test_number_and_rounding(printed: str, value: float | None, half: float) -> None:
    assert specs.number(printed) == value
    assert specs.rounding(printed) == half


@pytest.mark.parametrize("printed", ["", "n/a", "0,5", "512×256", "<u>0.1</u>", "5 M"])
def test_what_is_not_a_printed_number(printed: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        specs.number(printed)


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (50_352_000, "params", "50.35M"),
        (46.04e9, "macs", "46.04G"),
        (512, "input_size", "512×512"),
        (0.8443, "macs_ratio", "0.844"),
        (0.5, "pixel_auc", "0.500"),
    ],
)
def test_show(value: float, metric: str, text: str) -> None:
    assert specs.show(value, metric) == text


def test_everything_of_a_paper_is_read(root: Path) -> None:
    assert specs.papers() == ["toy"]
    assert specs.paper("toy").method == "sparsevit"
    assert list(specs.tables("toy")) == ["table_1"]
    assert list(specs.figures("toy")) == ["figure_2"]
    assert list(specs.claims("toy")) == ["better", "bigger", "stem"]
    assert specs.seed_sd("toy") == {"small": 0.05}


def test_a_paper_may_have_no_claims(root: Path) -> None:
    (root / "papers/toy/claims.yaml").unlink()
    assert (specs.claims("toy"), specs.seed_sd("toy")) == ({}, {})


def test_tables_are_sorted_by_number(root: Path) -> None:
    for number in (10, 2):
        (root / f"papers/toy/table_{number}.yaml").write_text(toy.TABLE)
    assert list(specs.tables("toy")) == ["table_1", "table_2", "table_10"]


def test_test_sets_of_a_column(root: Path) -> None:
    table = specs.tables("toy")["table_1"]
    assert table.testsets("columbia_f1") == ("columbia",)
    assert table.testsets("avg_f1") == ("columbia", "coverage")
    assert table.testsets("params") == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("place: nowhere", "place: nowhere\ncolour: red", "colour"),
        ("protocol: catnet", "protocol: null", "needs a protocol"),
        ('["1.00", "0.500", "0.400", "0.450"]', '["1.00"]', "1 printed values for 4 columns"),
        ('"0.500"', '"about half"', "not a number"),
        ("id: full,", "id: dense,", "row ids repeat"),
        ("testset: columbia, tolerance: 0.02", "testset: columbia", "needs a tolerance"),
        ("testset: columbia", "testset: columbia, testsets: [coverage]", "exactly one of"),
        ("testset: columbia, ", "", "exactly one of"),
        ("relative_to: dense", "relative_to: dense, testset: columbia", "has no test set"),
        ("relative_to: dense, ", "", "relative_to"),
        ("average: [columbia_f1, coverage_f1]", "average: [columbia_f2]", "near: columbia_f1"),
        ("average: [columbia_f1, coverage_f1]", "average: [params]", "not its metric"),
        ("label: Other, line: 3", "label: Other", "go together"),
        ("label: Stem, method: sparsevit", "label: Stem", "neither measured nor printed"),
    ],
)
def test_tables_that_are_refused(root: Path, old: str, new: str, message: str) -> None:
    assert old in toy.TABLE
    (root / "papers/toy/table_1.yaml").write_text(toy.TABLE.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        specs.tables("toy")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("table: table_1, row: full", "table: table_2, row: full", "unknown table 'table_2' .near: table_1"),
        ("row: full", "row: fall", "near: full"),
        ("row: full", "row: other", "is cited"),
        ("columns: [columbia_f1, coverage_f1]", "columns: [columbia_f2]", "near: columbia_f1"),
        ("columns: [columbia_f1, coverage_f1]", "columns: [columbia_f1, params]", "of one metric"),
        ("columns: [columbia_f1, coverage_f1]", "columns: [coverage_f1]", "sides differ"),
        ("quote: Ours", "note: none", "line and its quote"),
        ("seeds: 3", "seeds: 0", "greater than or equal to 1"),
        ("small: 0.05", "tiny: 0.05", "tiny"),
    ],
)
def test_claims_that_are_refused(root: Path, old: str, new: str, message: str) -> None:
    assert old in toy.CLAIMS
    (root / "papers/toy/claims.yaml").write_text(toy.CLAIMS.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        specs.claims("toy")


def test_a_row_by_id(root: Path) -> None:
    table = specs.tables("toy")["table_1"]
    assert specs.row(table, "full").line == 2
    with pytest.raises(ValueError, match="near: full"):
        specs.row(table, "ful")


def test_run_name() -> None:
    assert specs.run_name("sparsevit", "catnet", "", 0) == "sparsevit/catnet/full/s0"
    assert specs.run_name("sparsevit", "catnet", "srm_lff", 2) == "sparsevit/catnet/srm_lff/s2"
