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


def test_a_part_of_a_figure_stands_with_its_number(root: Path) -> None:
    for number in ("1b", "10", "s1", "1a", "s1b"):
        (root / f"papers/toy/figure_{number}.yaml").write_text(toy.FIGURE)
    names = ["1a", "1b", "2", "10", "s1", "s1b"]
    assert list(specs.figures("toy")) == [f"figure_{name}" for name in names]


def test_times_need_no_tolerance(root: Path) -> None:
    path = root / "papers/toy/table_1.yaml"
    old = "params: {label: Parameter, metric: params_ratio, relative_to: dense, tolerance: 0.005}"
    text = toy.TABLE.replace(old, "params: {label: Time, metric: epoch_seconds}").replace('"1.01"', '"8min32s"')
    path.write_text(text)
    assert specs.tables("toy")["table_1"].columns["params"].is_count
    path.write_text(text.replace("epoch_seconds", "flops"))
    with pytest.raises(ValueError, match="needs a tolerance"):
        specs.tables("toy")


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
    assert specs.run_name("sparsevit", "catnet", "sparsevit", "", 0) == "sparsevit/catnet/full/s0"
    assert specs.run_name("sparsevit", "catnet", "sparsevit", "srm_lff", 2) == "sparsevit/catnet/srm_lff/s2"
    assert specs.run_name("sparsevit", "catnet", "mvssnet", "", 1) == "sparsevit/catnet/mvssnet-full/s1"
