"""All cells read back, on a toy paper."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import toy
from tests.unit.toy import FULL, by_place
from unforge import cells, markdown, tables


def test_cells_come_from_built_tables_and_else_from_the_yaml(root: Path) -> None:
    profile = toy.profile()
    toy.score(root, FULL.format(0), "columbia", [0.6, 0.8, 1.0])
    assert set(cells.cells(profile)["status"].to_pylist()) == {"not_run", "cited"}
    markdown.write(tables.build("toy", "table_1", profile), root / "reports/small/tables/toy.table_1")
    found = by_place(cells.cells(profile))
    assert len(found) == 16
    assert found["full", "columbia_f1"]["measured"] == pytest.approx(0.8)
    path = root / "papers/toy/table_1.yaml"
    path.write_text(path.read_text().replace("0.790", "0.791"))
    cell = by_place(cells.cells(profile))["full", "columbia_f1"]
    assert (cell["printed"], cell["measured"], cell["status"]) == ("0.791", None, "not_run")
    assert "another YAML" in cell["note"]


def test_status_summary_counts_every_cell(root: Path) -> None:
    summary = cells.status_summary(toy.profile())
    assert summary == [
        {
            "paper": "toy",
            "table": "table_1",
            "cells": 16,
            "match": 0,
            "differs": 0,
            "not_comparable": 0,
            "cited": 4,
            "not_run": 12,
            "unavailable": 0,
        }
    ]


def test_counts_stand_beside_what_is_printed(root: Path) -> None:
    count = {"method": "sparsevit", "part": "", "input_size": 512, "params": 5, "macs": 6}
    rows = cells.printed_counts([{**count, "variant": ""}, {**count, "variant": "stem"}])
    assert [(row["params"], row["printed_params"], row["printed_macs"]) for row in rows] == [
        (5, "1.01 x dense", None),
        (5, None, None),
    ]


def test_diff_reports_what_moved(root: Path) -> None:
    profile = toy.profile()
    before = tables.build("toy", "table_1", profile)
    toy.score(root, FULL.format(0), "columbia", [0.6, 0.8, 1.0])
    middle = tables.build("toy", "table_1", profile)
    toy.score(root, FULL.format(0), "columbia", [0.6, 0.8, 0.9])
    after = tables.build("toy", "table_1", profile)
    assert cells.diff(before, before).num_rows == 0
    first = cells.diff(before, middle).to_pylist()
    assert [(row["row"], row["column"], row["before"], row["status_after"]) for row in first] == [
        ("full", "columbia_f1", None, "not_comparable")
    ]
    second = cells.diff(middle, after).to_pylist()
    assert [row["change"] for row in second] == [pytest.approx(-0.1 / 3)]
    assert cells.diff(middle, after, tolerance=0.04).num_rows == 0
    removed = cells.diff(after, after.slice(1)).to_pylist()
    assert [(row["row"], row["column"], row["status_after"]) for row in removed] == [("dense", "params", None)]
    with pytest.raises(ValueError, match="tolerance"):
        cells.diff(before, after, tolerance=-1)
