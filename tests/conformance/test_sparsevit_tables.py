"""papers/sparsevit against the paper's text (where it is at hand) and against itself.

The text is looked for in UNFORGE_PAPERS, or in `papers/` beside UNFORGE_REAL_DATA.
"""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.conformance.printed import cell, numbers
from unforge import audit, counts, datasets, demand, metrics, perturbations, profiles, specs, tables

PAPER = "sparsevit"
PRINTED = {
    "table_2": 96,
    "table_3": 12,
    "table_4": 60,
    "table_5": 18,
    "table_6": 16,
    "table_7": 9,
    "table_8": 25,
    "table_9": 20,
}


def fields(line: str) -> list[str]:
    """The fields of a table's line without the marks of underlined numbers."""
    plain = re.sub(r"</?u>|\$\\overline\{|\}\$", "", line)
    return [field.strip() for field in plain.split("\t")]


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
            label = " ".join(field for field in line[: -len(table.columns)] if field)
            assert row.label.endswith(label), f"{name} {row.id}: {label!r}"
            checked += len(values)
    assert checked == sum(PRINTED.values())


@pytest.mark.real_data
def test_no_row_of_the_papers_tables_is_left_out(text: list[str]) -> None:
    known = {row.line for table in specs.tables(PAPER).values() for row in table.rows if row.line is not None}
    number = re.compile(r"\d+\.\d+[MG]?")
    rows = {i for i, line in enumerate(text) if "\t" in line and number.fullmatch(fields(line)[-1])}
    assert rows == known


@pytest.mark.real_data
def test_captions_are_the_papers(text: list[str]) -> None:
    for name, spec in [*specs.tables(PAPER).items(), *specs.figures(PAPER).items()]:
        line = re.search(r"line (\d+)", spec.place)
        assert line is not None
        kind, _, number = name.partition("_")
        assert text[int(line[1])].startswith(f"{kind.capitalize()} {number}: {spec.caption}")


@pytest.mark.real_data
def test_claims_quote_their_lines(text: list[str]) -> None:
    for name, claim in specs.claims(PAPER).items():
        if claim.line is not None:
            assert claim.quote in text[claim.line], name


def test_every_printed_number_is_there() -> None:
    assert numbers(PAPER) == PRINTED


@pytest.mark.parametrize(
    ("table", "row", "column", "printed"),
    [
        ("table_2", "sobel_lff", "def12k_auc", "0.755"),
        ("table_2", "full", "macs", "0.84"),
        ("table_3", "single_scale", "coverage_f1", "0.485"),
        ("table_4", "trufor", "columbia_auc", "0.992"),
        ("table_5", "mantranet", "macs", "274.0G"),
        ("table_6", "s8", "nist16_f1", "0.368"),
        ("table_7", "aff", "params", "3.67M"),
        ("table_8", "full", "avg_iou", "0.629"),
        ("table_9", "volo_sparse", "casia1_f1", "0.645"),
    ],
)
def test_numbers_read_from_the_paper_by_eye(table: str, row: str, column: str, printed: str) -> None:
    assert cell(PAPER, table, row, column)[0] == printed


def test_table_7_averages_the_four_sets_of_table_3() -> None:
    tables_ = specs.tables(PAPER)
    lff = specs.row(tables_["table_3"], "lff").printed
    assert tables_["table_7"].testsets("avg_f1") == ("coverage", "columbia", "casia1", "nist16")
    assert round(sum(float(value or "nan") for value in lff) / 4, 3) == 0.671


def test_names_exist() -> None:
    for table in specs.tables(PAPER).values():
        for column, spec in table.columns.items():
            assert spec.is_count or spec.metric in metrics.names()
            for testset in table.testsets(column):
                assert testset in datasets.names()
        assert table.protocol is None or hasattr(datasets.load(table.protocol), "MEMBERS")
    for figure in specs.figures(PAPER).values():
        assert figure.metric in metrics.names()
        assert {panel.perturbation for panel in figure.panels} <= set(perturbations.names())


def test_every_row_but_those_of_other_models_is_measured() -> None:
    cited = {"table_4": 5, "table_5": 3, "table_8": 4}
    for name, table in specs.tables(PAPER).items():
        assert sum(row.method is None for row in table.rows) == cited.get(name, 0), name


def test_variants_are_the_methods() -> None:
    methods = pytest.importorskip("unforge.methods")
    known = set(methods.load_module("sparsevit").VARIANTS)
    wanted = demand.demand(profiles.load("small"), [PAPER])
    assert {run.variant for run in wanted.runs.values() if run.paper} == known


def test_front_ends_get_three_seeds_and_nothing_else_does() -> None:
    runs = demand.demand(profiles.load("small"), [PAPER]).runs
    number = {name.rsplit("/", 1)[0]: 0 for name, run in runs.items() if run.paper}
    for name, run in runs.items():
        if run.paper:
            number[name.rsplit("/", 1)[0]] += 1
    three = {name.rsplit("/", 1)[1] for name, count in number.items() if count == 3}
    assert three == {"full", "srm_lff", "bayar_lff"}
    assert sorted(set(number.values())) == [1, 3]
    assert len(number) == 32


def test_the_block_with_the_stem_mirrors_rows_without_an_extractor() -> None:
    extractors = {"sobel_lff", "bayar_lff", "dct_lff", "srm_lff"}
    for name, table in specs.tables(PAPER).items():
        own = {row.variant for row in table.rows if row.method and not row.block} - extractors
        added = {row.variant for row in table.rows if row.block}
        expected = set() if name == "table_5" else {f"stem_{variant}" if variant else "stem" for variant in own}
        assert added == expected, name


def test_audit_finds_the_one_claim_the_numbers_contradict() -> None:
    rows = [row for row in audit.audit().to_pylist() if row["paper"] == PAPER]
    assert [(row["table"], row["row"], row["column"], row["rule"]) for row in rows] == [
        ("table_2", "sparse", "def12k_auc", "claim")
    ]


@pytest.mark.slow
def test_every_printed_count_of_a_measured_row_is_a_match(monkeypatch: pytest.MonkeyPatch) -> None:
    from unforge import methods

    counted = cache(counts.of)

    def count(self: tables.Reader, method: str, variant: str, part: str) -> dict[str, float]:
        params, macs = counted(method, variant)[part]
        return {"params": params, "macs": macs, "input_size": methods.config(method, variant).count_size}

    monkeypatch.setattr(tables.Reader, "count", count)
    profile = profiles.load("small")
    statuses = [
        cell["status"]
        for name in ("table_2", "table_5", "table_7")
        for cell in tables.build(PAPER, name, profile).to_pylist()
        if cell["metric"] in specs.COUNTS and cell["printed"] and cell["method"]
    ]
    assert statuses == ["match"] * (16 + 3 + 6)
