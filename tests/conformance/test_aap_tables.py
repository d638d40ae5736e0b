"""papers/aap against the paper's text (where it is at hand) and against itself.

The text is looked for in UNFORGE_PAPERS, or in `papers/` beside UNFORGE_REAL_DATA.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.conformance.printed import cell, numbers, plain, printed
from unforge import assets, audit, datasets, demand, methods, metrics, notation, profiles, specs

PAPER = "aap"
PRINTED = {
    "table_1": 96,
    "table_2": 156,
    "table_4": 21,
    "table_5": 120,
    "table_6": 4,
    "table_7": 48,
    "table_8": 6,
    "table_degraded": 0,
}
"""Numbers that the tables print, the one dash of Table 4 among them."""
MOST_RUNS = 45
SETS = ("sd15", "sd21", "sdxl", "sd3", "flux")


@pytest.mark.real_data
def test_every_row_is_printed_on_its_line(text: list[str]) -> None:
    checked = 0
    for name, table in specs.tables(PAPER).items():
        for row in table.rows:
            if row.line is None:
                continue
            fields = text[row.line].split()
            values = printed(row)
            assert fields[-len(values) :] == values, f"{name} {row.id}"
            assert row.printed[: len(values)] == tuple(values), "what is ours comes last"
            label = " ".join(fields[: -len(values)])
            if name in ("table_1", "table_2", "table_5", "table_6", "table_8"):
                assert row.label == label, f"{name} {row.id}"
            else:
                assert plain(label) in plain(row.label), f"{name} {row.id}"
            checked += len(values)
    assert checked == sum(PRINTED.values())


@pytest.mark.real_data
def test_no_row_of_the_papers_tables_is_left_out(text: list[str]) -> None:
    known = {row.line for table in specs.tables(PAPER).values() for row in table.rows if row.line is not None}
    number = r"(\d+\.\d+%?(\([+-]\d+\.\d+\))?|-)"
    assert {i for i, line in enumerate(text) if 464 < i < 652 and re.search(rf"{number} {number}$", line)} == known


@pytest.mark.real_data
def test_captions_are_the_papers(text: list[str]) -> None:
    for name, spec in [*specs.tables(PAPER).items(), *specs.figures(PAPER).items()]:
        if (line := re.search(r"line (\d+)", spec.place)) is None:
            assert spec.place == "not in the paper's text", name
            continue
        start = int(line[1])
        whole = plain(" ".join(text[start : start + 6]).replace("-", ""))
        assert plain(spec.caption.replace("-", "")) in whole, name


@pytest.mark.real_data
def test_claims_quote_their_lines(text: list[str]) -> None:
    for name, claim in specs.claims(PAPER).items():
        if claim.line is not None:
            assert plain(claim.quote) in plain(" ".join(text[claim.line : claim.line + 7])), name
            assert plain(claim.quote)[:6] in plain(" ".join(text[claim.line : claim.line + 2])), name


@pytest.mark.real_data
def test_two_means_of_the_text_are_those_of_table_7(text: list[str]) -> None:
    assert "from 83.35% to 87.45% (+4.1%)" in text[641]
    for row, stated in (("llava_black_box", 83.35), ("llava", 87.45)):
        values = [notation.number(v) for v in printed(specs.row(specs.tables(PAPER)["table_7"], row))]
        assert sum(v for v in values if v is not None) / 6 == pytest.approx(stated, abs=0.005)


def test_as_many_numbers_as_printed() -> None:
    tables = specs.tables(PAPER)
    assert numbers(PAPER) == PRINTED
    gains = [v for row in tables["table_7"].rows for v in printed(row) if notation.gain(v)]
    assert len(gains) == 24


@pytest.mark.parametrize(
    ("table", "row", "column", "value", "line"),
    [
        ("table_1", "full", "real_acc", "97.8", 479),
        ("table_1", "univfd", "synthetic_f1", "98.0", 472),
        ("table_2", "llava", "sd3_acc", "85.9", 521),
        ("table_2", "full", "sd3_acc", "84.2", 522),
        ("table_4", "safire", "auc", "-", 549),
        ("table_4", "full", "iou", "56.8", 551),
        ("table_5", "objformer", "sd21_f1", "41.4", 568),
        ("table_5", "full", "flux_iou", "31.6", 575),
        ("table_6", "symmetric", "iou", "40.2", 596),
        ("table_7", "full", "sd15", "90.25%(-0.92)", 628),
        ("table_7", "large", "sidset", "97.24%(+3.11)", 631),
        ("table_8", "full", "sidset", "56.85(+13.0)", 648),
    ],
)
def test_spot_checks(table: str, row: str, column: str, value: str, line: int) -> None:
    assert cell(PAPER, table, row, column) == (value, line)


def test_metrics_are_those_that_are_printed_and_those_that_should_be() -> None:
    tables = specs.tables(PAPER)
    of = {name: {column: spec.metric for column, spec in table.columns.items()} for name, table in tables.items()}
    assert of["table_1"]["overall_acc"] == "class_acc@total"
    assert of["table_1"]["macro_acc"] == "class_acc@macro"
    assert of["table_4"] == {
        "auc": "auc_sida",
        "f1": "pixel_f1_pooled@tampered",
        "iou": "ciou@tampered",
        "pixel_auc": "pixel_auc",
        "pixel_f1": "pixel_f1@tampered",
        "pixel_iou": "pixel_iou@tampered",
    }
    used = {metric for table in of.values() for metric in table.values()} - {specs.MEAN}
    used |= {figure.metric for figure in specs.figures(PAPER).values() if figure.metric}
    assert used <= set(metrics.names())
    assert all(table.percent for table in tables.values())


def test_table_7_and_8_join_two_protocols() -> None:
    tables = specs.tables(PAPER)
    for name in ("table_7", "table_8"):
        assert tables[name].protocols() == ("opensdid", "sid")
    assert tables["table_7"].trained("sidset") == {"sidset_test": "sid"}
    assert tables["table_8"].trained("avg") == {**{f"opensdid_{s}": "opensdid" for s in SETS}, "sidset_test": "sid"}


def test_audit_finds_the_defects() -> None:
    found = {(r["table"], r["row"], r["column"], r["rule"]) for r in audit.audit().to_pylist() if r["paper"] == PAPER}
    assert found >= {
        ("table_1", "llava_black_box", "overall_acc", "total"),
        ("table_1", "full", "overall_f1", "average"),
        ("table_1", "univfd", "synthetic_f1", "f1_above_recall"),
        ("table_2", "imlvit", "sd15_f1", "f1_above_accuracy"),
        ("table_5", "objformer", "sd21_f1", "f1_below_iou"),
        ("table_7", "llava_black_box", "sidset", "contradiction"),
        ("table_7", "black_box", "sd15", "same_row"),
        ("table_7", "full", "sd15", "claim"),
        ("table_6", "full", "acc", "gain"),
    }
    # Table 2 and Table 7 agree on AAP-llava and AAP-lisa, rounding allowed: 85.9 and 85.90, 84.2 and 84.20
    assert not [f for f in found if f[0] == "table_7" and f[1] in ("llava", "full") and f[3] == "contradiction"]
    assert Counter(rule for *_, rule in found)["confusion"] == 8


def test_runs_are_afforded() -> None:
    wanted = demand.demand(profiles.load("small"), [PAPER])
    trained = [r for r in wanted.runs.values() if r.paper == PAPER and r.method != assets.HEADERS]
    assert len(trained) <= MOST_RUNS
    seeds = Counter((r.protocol, r.variant) for r in trained if r.method == PAPER)
    assert {key for key, count in seeds.items() if count > 1} == {
        ("sid", variant) for variant in ("", "symmetric", "no_map", "black_box")
    }
    assert wanted.protocols == {"sid", "opensdid"}
    shared = {name for name, r in wanted.runs.items() if r.paper == "tampertok"}
    own = demand.demand(profiles.load("small"), ["tampertok"]).runs
    assert shared <= set(own), "a run that is shown from another paper is one that this paper asks for"


def test_runs_build_on_what_they_are_said_to() -> None:
    runs = demand.demand(profiles.load("small"), [PAPER]).runs
    llava = {"backbone": "llava", "sam": "sam"}
    expected: dict[str, dict[str, str]] = {
        "aap/sid/full/s0": {"backbone": "lisa"},
        "aap/sid/control_symmetric/s0": {"backbone": "lisa", "anchor": "consistency"},
        "aap/sid/llava_black_box/s0": llava,
        "aap/opensdid/siglip/s0": {"backbone": "llava_siglip", "sam": "sam"},
        "aap/opensdid/large_black_box/s0": {"backbone": "llava_large", "sam": "sam"},
        "aap/sid/univfd-three/s0": {"backbone": "clip"},
        "aap/sid/lisa-full/s0": llava,
        "tampertok/sid/sida-full/s0": llava,
    }
    assert {name: dict(runs[name].assets) for name in expected} == expected


def test_every_method_variant_and_set_exists() -> None:
    wanted = demand.demand(profiles.load("small"), [PAPER])
    for run in wanted.runs.values():
        if run.method != assets.HEADERS:
            assert run.variant in methods.load_module(run.method).VARIANTS, run
    for name in {*wanted.testsets, *wanted.protocols}:
        datasets.load(name)
