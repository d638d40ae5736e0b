"""papers/qtfp against the supplement's text (where it is at hand) and against itself.

The text is looked for in UNFORGE_PAPERS, or in `papers/` beside UNFORGE_REAL_DATA.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.conformance.printed import cell, numbers, plain, printed
from unforge import audit, catalogue, datasets, demand, methods, metrics, notation, profiles, specs

PAPER = "qtfp"
PRINTED = {"table_s1": 44, "table_s2": 8, "table_s3": 9, "table_s4": 12, "table_s5": 18, "table_weights": 0}
MOST_RUNS = 30
SETS = ("cdf_v1", "cdf_v2", "faceshifter", "uadfv", "dfd", "dfdc", "dfdcp", "deeperforensics", "wilddeepfake", "ffiw")
SETTINGS = ("effort", "effort_ours", "lora", "lora_ours", "tuned", "tuned_ours")


def number(table: str, row: str, column: str) -> float:
    found = notation.number(cell(PAPER, table, row, column)[0] or "-")
    assert found is not None
    return found


@pytest.mark.real_data
def test_every_row_is_printed_on_its_line(text: list[str]) -> None:
    checked = 0
    for name, table in specs.tables(PAPER).items():
        for row in table.rows if name != "table_s5" else ():
            if row.line is None:
                continue
            label, *fields = re.sub(r"</?u>", "", text[row.line]).split("\t")
            assert (label, fields) == (row.label, printed(row)), f"{name} {row.id}"
            checked += len(fields)
    assert checked == sum(PRINTED.values()) - 18


@pytest.mark.real_data
def test_table_s5_is_printed_the_other_way_round(text: list[str]) -> None:
    table = specs.tables(PAPER)["table_s5"]
    lines = [text[i].split("\t")[1:] for i in (141, 142, 143, 144)]
    assert lines[0] == [row.label for row in table.rows]
    assert [row.id for row in table.rows] == list(SETTINGS)
    assert [list(values) for values in zip(*lines[1:], strict=True)] == [list(row.printed) for row in table.rows]
    assert {row.line for row in table.rows} == {142}


@pytest.mark.real_data
def test_columns_are_in_the_printed_order(text: list[str]) -> None:
    tables = specs.tables(PAPER)
    for name, line in (("table_s1", 37), ("table_s2", 45), ("table_s3", 63), ("table_s4", 90)):
        labels = [c.label for c in tables[name].columns.values() if "(ours)" not in c.label]
        assert text[line].split("\t")[1:] == labels


@pytest.mark.real_data
def test_captions_are_the_papers(text: list[str]) -> None:
    for name, spec in [*specs.tables(PAPER).items(), *specs.figures(PAPER).items()]:
        start = int(re.findall(r"line (\d+)", spec.place)[0]) if "caption" in spec.place else 0
        if not start:
            assert "(ours)" in spec.caption, name
            continue
        whole = plain(text[start])
        for sentence in re.split(r"(?<=\w\.)\s+(?=\(|[A-Z])", spec.caption):
            assert plain(sentence) in whole, f"{name}: {sentence}"


@pytest.mark.real_data
def test_claims_quote_their_lines(text: list[str]) -> None:
    for name, claim in specs.claims(PAPER).items():
        if claim.line is not None:
            assert plain(claim.quote) in plain(text[claim.line]), name


def test_as_many_numbers_as_printed() -> None:
    assert numbers(PAPER) == PRINTED


@pytest.mark.parametrize(
    ("table", "row", "column", "value", "line"),
    [
        ("table_s1", "global", "deeperforensics", "0.992", 38),
        ("table_s1", "average", "dfdcp", "0.940", 39),
        ("table_s1", "weighted", "faceshifter", "0.908", 40),
        ("table_s1", "concat", "avg", "0.942", 41),
        ("table_s2", "macl", "faceshifter", "0.923", 47),
        ("table_s3", "l2", "uniface", "0.985", 65),
        ("table_s4", "none", "avg", "0.904", 91),
        ("table_s4", "token", "faceshifter", "0.900", 92),
        ("table_s5", "effort_ours", "params", "4.39M", 142),
        ("table_s5", "lora", "flops", "155.7", 142),
        ("table_s5", "tuned_ours", "time", "10min51s", 142),
    ],
)
def test_spot_checks(table: str, row: str, column: str, value: str, line: int) -> None:
    assert cell(PAPER, table, row, column) == (value, line)


def test_the_notes_on_averages() -> None:
    assert sum(number("table_s1", "concat", name) for name in SETS) / 10 == pytest.approx(0.9413)
    assert sum(number("table_s4", "none", name) for name in SETS[1:3]) + 0.860 == pytest.approx(3 * 0.9047, abs=2e-4)
    ratios = [number("table_s5", f"{s}_ours", "time") / number("table_s5", s, "time") for s in SETTINGS[::2]]
    assert [round(ratio, 3) for ratio in ratios] == [1.037, 1.018, 1.014]


def test_metrics_and_sets_are_those_that_are_printed() -> None:
    tables = specs.tables(PAPER)
    assert tables["table_s1"].testsets("avg") == SETS
    for name in ("table_s2", "table_s4"):
        assert tables[name].testsets("avg") == ("cdf_v2", "faceshifter", "dfdc")
    assert tables["table_s3"].testsets("avg") == ("cdf_v2", "uniface")
    used = {c.metric for t in tables.values() for c in t.columns.values()} - set(specs.COUNTS)
    assert used == {"video_auc", "attention_gap"}
    assert used <= set(metrics.names())
    assert tables["table_s5"].columns["params"].part == "trainable"


def test_audit_finds_that_the_text_contradicts_table_s4() -> None:
    found = [r for r in audit.audit().to_pylist() if r["paper"] == PAPER]
    assert [(r["table"], r["row"], r["column"], r["rule"]) for r in found] == [
        ("table_s4", "token", "faceshifter", "claim")
    ]


def test_runs_are_afforded() -> None:
    wanted = demand.demand(profiles.load("small"), [PAPER])
    trained = [r for r in wanted.runs.values() if r.paper == PAPER]
    assert len(trained) <= MOST_RUNS
    seeds = Counter(r.variant for r in trained)
    assert {variant: count for variant, count in seeds.items() if count > 1} == {"": 3, "effort": 3, "queries": 3}
    assert {(r.protocol, tuple(r.assets.items())) for r in trained} == {("ffpp", (("backbone", "clip"),))}
    assert wanted.testsets == {*SETS, "uniface"}
    assert wanted.protocols == {"ffpp"}
    assert wanted.counts == {PAPER}


def test_every_method_variant_and_set_exists() -> None:
    wanted = demand.demand(profiles.load("small"), [PAPER])
    for run in wanted.runs.values():
        assert run.variant in methods.load_module(run.method).VARIANTS, run
    for name in {*wanted.testsets, *wanted.protocols}:
        datasets.load(name)
    extras = methods.load_module(PAPER).Qtfp.EXTRAS
    drawn = [series for figure in specs.figures(PAPER).values() for series in figure.series]
    assert {series.extra for series in drawn} - {""} == set(extras)
    assert {series.signals for series in drawn} - {""} == {"query_attention_", "cls_attention_"}


def test_the_weights_of_the_curves_are_those_of_the_variants() -> None:
    variants, figures = methods.load_module(PAPER).VARIANTS, specs.figures(PAPER)
    for name, field in (("figure_s2", "contrast_weight"), ("figure_s3", "align_weight")):
        found = {s.variant: s.level for s in figures[name].series}
        assert found == {variant: getattr(variants[variant], field) for variant in found}
    shown = {s.variant for name in ("figure_s2", "figure_s3") for s in figures[name].series}
    assert {row.variant for row in specs.tables(PAPER)["table_weights"].rows} == shown


def test_one_stage_looks_at_the_frames_of_both_figures() -> None:
    profile = profiles.load("small")
    stages = {s.name: s for s in catalogue.paper_stages(profile, PAPER, demand.demand(profile, [PAPER]))}
    attention = stages["attention"]
    assert attention.outs == (demand.attention("small", PAPER),)
    runs = {f"models/small/runs/qtfp/ffpp/{v}/s0" for v in ("full", "no_raal", "effort", "lora", "lora_ours", "tuned")}
    assert set(attention.deps) >= runs | {"data/shards/small/cdf_v2"}
    assert attention.arguments[-2:] == ("--frames", "5")
    for figure in ("figure_s1a", "figure_s4"):
        assert stages[figure].deps == attention.outs
    assert attention.outs[0] not in stages["figure_s1b"].deps
