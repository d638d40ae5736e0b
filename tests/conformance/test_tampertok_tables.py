"""papers/tampertok against the paper's text (where it is at hand) and against itself.

The text is looked for in UNFORGE_PAPERS, or in `papers/` beside UNFORGE_REAL_DATA.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.conformance.printed import cell, numbers
from unforge import audit, datasets, demand, metrics, profiles, specs

PAPER = "tampertok"
PRINTED = {
    "table_1": 112,
    "table_2": 56,
    "table_3": 42,
    "table_4": 56,
    "table_5": 84,
    "table_6": 21,
    "table_7": 48,
}
STEM = "truncated trainable stem (not in the paper)"


def fields(line: str) -> list[str]:
    """The fields of a table's line without marks of style and without the subscripts of improvement."""
    return [field.strip() for field in re.sub(r"</?[ui]>|\$|_\{\+\d+%\}", "", line).split("\t")]


@pytest.mark.real_data
def test_every_row_is_printed_on_its_line(text: list[str]) -> None:
    checked = 0
    for name, table in specs.tables(PAPER).items():
        for row in table.rows:
            if row.line is None:
                continue
            line = fields(text[row.line])
            values = line[-len(table.columns) :]
            assert values == list(row.printed), f"{name} {row.id}"
            label = line[: -len(table.columns)]
            marks = [f"{part} {mark}" for part, mark in zip(("CBD", "SwEI", "KSD"), label, strict=False)]
            assert row.label == (", ".join(marks) if name == "table_2" else " ".join(label)), f"{name} {row.id}"
            checked += len(values)
    assert checked == sum(PRINTED.values())


@pytest.mark.real_data
def test_no_row_of_the_papers_tables_is_left_out(text: list[str]) -> None:
    known = {row.line for table in specs.tables(PAPER).values() for row in table.rows if row.line is not None}
    rows = {i for i, line in enumerate(text) if "\t" in line and re.fullmatch(r"\d\.\d\d", fields(line)[-1])}
    assert rows == known


@pytest.mark.real_data
def test_captions_are_the_papers(text: list[str]) -> None:
    for name, spec in [*specs.tables(PAPER).items(), *specs.figures(PAPER).items()]:
        line = re.search(r"line (\d+)", spec.place)
        assert line is not None
        kind, _, number = name.partition("_")
        assert text[int(line[1])] == f"{kind.capitalize()} {number.rstrip('ab')}: {spec.caption}"


@pytest.mark.real_data
def test_claims_quote_their_lines(text: list[str]) -> None:
    for name, claim in specs.claims(PAPER).items():
        if claim.line is not None:
            assert claim.quote in text[claim.line], name


@pytest.mark.real_data
def test_gains_are_stated_on_their_lines(text: list[str]) -> None:
    gains = {name: claim for name, claim in specs.claims(PAPER).items() if claim.gain}
    assert len(gains) == 22
    for name, claim in gains.items():
        assert claim.line is not None
        assert claim.gain in text[claim.line], name


@pytest.mark.real_data
def test_subscripts_are_points_above_the_better_of_the_other_mllms(text: list[str]) -> None:
    table = specs.tables(PAPER)["table_1"]
    ours, fakeshield, sida = (specs.row(table, row) for row in ("full", "fakeshield", "sida"))
    points = [
        round(100 * (float(own or "") - max(float(one or ""), float(other or ""))))
        for own, one, other in zip(ours.printed, fakeshield.printed, sida.printed, strict=True)
    ]
    assert ours.line is not None
    assert [int(percent) for percent in re.findall(r"\+(\d+)%", text[ours.line])] == points


def test_every_printed_number_is_there() -> None:
    assert numbers(PAPER) == PRINTED


@pytest.mark.parametrize(
    ("table", "row", "column", "printed"),
    [
        ("table_1", "catnet", "columbia_iou", "0.77"),
        ("table_1", "fakeshield", "imd2020_f1", "0.03"),
        ("table_1", "full", "avg_f1", "0.79"),
        ("table_2", "lisa", "casia1_f1", "0.48"),
        ("table_3", "sequence", "cocoglide_f1", "0.79"),
        ("table_4", "full", "nist16_f1", "0.60"),
        ("table_5", "mvss", "coverage_iou", "0.39"),
        ("table_6", "sida", "noise10", "0.51"),
        ("table_6", "full", "resize0_5", "0.67"),
        ("table_7", "psccnet", "tampered_acc", "0.01"),
        ("table_7", "full", "overall_f1", "0.98"),
    ],
)
def test_numbers_read_from_the_paper_by_eye(table: str, row: str, column: str, printed: str) -> None:
    assert cell(PAPER, table, row, column)[0] == printed


def test_names_exist() -> None:
    for table in specs.tables(PAPER).values():
        assert table.protocol is not None
        assert hasattr(datasets.load(table.protocol), "MEMBERS")
        for column, spec in table.columns.items():
            assert spec.metric in metrics.names()
            for testset in table.testsets(column):
                assert testset.partition("~")[0] in datasets.names()
    for figure in specs.figures(PAPER).values():
        assert figure.metric is None or figure.metric in metrics.names()
        assert set(figure.testsets) <= set(datasets.names())


def test_variants_are_the_methods() -> None:
    methods = pytest.importorskip("unforge.methods")
    runs = demand.demand(profiles.load("small"), [PAPER]).runs.values()
    wanted = {(run.method, run.variant) for run in runs if run.method != "headers"}
    for method, variant in wanted:
        assert variant in methods.load_module(method).VARIANTS, method
    assert {method for method, _ in wanted} == {
        "constant",
        "fakeshield",
        "lisa",
        "mvssnet",
        "psccnet",
        "sida",
        "sparsevit",
        "tampertok",
    }


def test_every_row_but_those_of_other_models_is_measured() -> None:
    cited = {(name, row.id) for name, table in specs.tables(PAPER).items() for row in table.rows if row.method is None}
    assert cited == {("table_1", "catnet"), ("table_1", "trufor"), ("table_7", "trufor")}


def test_the_block_with_the_stem_mirrors_the_experts() -> None:
    experts = ["mvssnet", "psccnet", "sparsevit"]
    for name in ("table_1", "table_5", "table_7"):
        rows = specs.tables(PAPER)[name].rows
        assert sorted(row.method for row in rows if row.block == STEM) == experts, name
        assert {row.variant for row in rows if row.block == STEM} == {"stem"}
        assert sorted(row.method for row in rows if not row.block and row.method in experts) == experts, name


def test_the_experts_and_weights_that_runs_build_on_are_runs() -> None:
    runs = [run for run in demand.demand(profiles.load("small"), [PAPER]).runs.values() if run.paper]
    known = {(run.protocol, run.method, run.variant, run.seed) for run in runs}
    paper, experts = specs.paper(PAPER), set()
    for run in runs:
        assets = paper.of(run.method, run.variant)
        if "expert" in assets:
            method, _, variant = assets["expert"].partition("-")
            experts.add((run.protocol, run.variant, method))
            assert (run.protocol, method, variant, 0) in known
        if "run" in assets:
            variant = assets["run"].removeprefix("full")
            assert (run.protocol, run.method, variant, run.seed) in known
    assert {("tampertok", "mvss", "mvssnet"), ("tampertok", "pscc", "psccnet"), ("sid", "", "sparsevit")} <= experts
    assert not [expert for expert in experts if expert[1] in ("cbd", "hard")]


def test_soft_and_hard_decoding_get_three_seeds_and_nothing_else_does() -> None:
    runs = [run for run in demand.demand(profiles.load("small"), [PAPER]).runs.values() if run.paper]
    number = Counter((run.protocol, run.method, run.variant) for run in runs)
    three = {key for key, count in number.items() if count == 3}
    assert three == {("tampertok", "tampertok", ""), ("tampertok", "tampertok", "hard")}
    assert set(number.values()) == {1, 3}


def test_k_1_is_the_row_without_the_splatting_loss() -> None:
    tables = specs.tables(PAPER)
    first, second = specs.row(tables["table_4"], "k1"), specs.row(tables["table_2"], "swei")
    assert (first.method, first.variant, first.printed) == (second.method, second.variant, second.printed)


def test_audit_finds_what_the_numbers_contradict() -> None:
    rows = [row for row in audit.audit().to_pylist() if row["paper"] == PAPER]
    assert Counter(row["rule"] for row in rows) == {
        "f1_above_bound": 23,
        "claim": 6,
        "confusion": 3,
        "contradiction": 1,
        "gain": 1,
    }
    found = {(row["table"], row["row"], row["column"], row["rule"]) for row in rows}
    assert {key for key in found if key[3] != "f1_above_bound"} == {
        ("table_1", "full", "coverage_iou", "claim"),
        ("table_2", "swei", "coverage_f1", "gain"),
        ("table_4", "full", "nist16_f1", "contradiction"),
        ("table_5", "mvss", "avg_f1", "claim"),
        ("table_5", "mvss", "columbia_f1", "claim"),
        ("table_5", "mvss", "coverage_f1", "claim"),
        ("table_5", "pscc", "avg_f1", "claim"),
        ("table_7", "full", "real_f1", "claim"),
        ("table_7", "psccnet", "tampered_f1", "confusion"),
        ("table_7", "sparsevit", "tampered_f1", "confusion"),
        ("table_7", "trufor", "real_f1", "confusion"),
    }
    assert {
        ("table_1", "mvssnet", "casia1_f1", "f1_above_bound"),
        ("table_1", "sparsevit", "coverage_f1", "f1_above_bound"),
        ("table_1", "full", "coverage_f1", "f1_above_bound"),
        ("table_1", "fakeshield", "coverage_f1", "f1_above_bound"),
    } <= found


def test_rows_above_the_bound_say_so() -> None:
    rows = {(row["table"], row["row"]) for row in audit.audit().to_pylist() if row["rule"] == "f1_above_bound"}
    for name, row_id in rows:
        assert "F1 is higher than any mean" in specs.row(specs.tables(PAPER)[name], row_id).errata
