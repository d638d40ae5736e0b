"""All cells of all papers, from what is in git: every printed number beside the measured one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unforge import paths, profiles, specs, tables


def cells(profile: profiles.Profile) -> pa.Table:
    """Every cell of every table: every printed number and every added row. Needs only what is in git.

    A cell comes from the built table when that has it as the YAML has it now; otherwise it is `not_run`.
    """
    found = []
    for paper in specs.papers():
        for name, table in specs.tables(paper).items():
            path = paths.root() / f"{paths.table(profile.name, f'{paper}.{name}')}.parquet"
            built = {(c["row"], c["column"]): c for c in pq.read_table(path).to_pylist()} if path.is_file() else {}
            for row in table.rows:
                for column in table.columns:
                    cell = tables.cell(paper, name, table, row, column, _unmeasured(profile, table, row, column))
                    known = built.get((row.id, column))
                    if known is not None and all(known.get(key) == cell[key] for key in _FIXED):
                        cell = {**cell, **known, "row_label": cell["row_label"], "column_label": cell["column_label"]}
                    elif built and row.method is not None:
                        cell["note"] = "the table was built from another YAML"
                    found.append(cell)
    return pa.Table.from_pylist(found, schema=tables.CELLS)


_FIXED = ("metric", "printed", "testset", "line", "method", "variant", "protocol", "signal", "block")


def _unmeasured(profile: profiles.Profile, table: specs.Table, row: specs.Row, column: str) -> tables.Value:
    if row.method is None:
        return tables.Value(status="cited")
    if table.columns[column].is_count:
        return tables.Value()
    if table.own(row, column):
        return tables.OWN
    if column not in table.measured(row):
        return tables.Value()
    parts = [tables.missing(profile, protocol, t, row.origin) for t, protocol in table.trained(column).items()]
    return max(parts, key=lambda part: tables.STATUSES.index(part.status))


def status_summary(profile: profiles.Profile) -> list[dict[str, Any]]:
    """One row per table: paper, table, number of cells, and how many have each status."""
    counted: dict[tuple[str, str], Counter[str]] = {}
    for cell in cells(profile).select(["paper", "table", "status"]).to_pylist():
        counted.setdefault((cell["paper"], cell["table"]), Counter())[cell["status"]] += 1
    return [
        {
            "paper": paper,
            "table": table,
            "cells": count.total(),
            **{status: count[status] for status in tables.STATUSES},
        }
        for (paper, table), count in counted.items()
    ]


def printed_counts(counts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Counts (method, variant, part, input_size, params, macs) beside what the papers print of them.

    `printed_params` and `printed_macs` are the paper's strings, a ratio as `0.83 x dense`; null where none is printed.
    """
    printed: dict[tuple[str, str, str, str], str] = {}
    for paper in specs.papers():
        for table in specs.tables(paper).values():
            for row in table.rows:
                for column, text in zip(table.columns.values(), row.printed, strict=False):
                    if row.method is None or not column.is_count or text is None:
                        continue
                    what = column.metric.removesuffix("_ratio")
                    key = (row.method, row.variant, column.part, what)
                    if column.relative_to is None:
                        printed[key] = text
                    else:
                        printed.setdefault(key, f"{text} x {column.relative_to or 'full'}")
    return [
        {
            **{name: count[name] for name in ("method", "variant", "part", "input_size", "params", "macs")},
            "printed_params": printed.get((count["method"], count["variant"], count["part"], "params")),
            "printed_macs": printed.get((count["method"], count["variant"], count["part"], "macs")),
        }
        for count in counts
    ]


MOVED = pa.schema(
    [
        *[pa.field(name, pa.string(), nullable=False) for name in ("paper", "table", "row", "column")],
        pa.field("before", pa.float64()),
        pa.field("after", pa.float64()),
        pa.field("change", pa.float64()),
        pa.field("status_before", pa.string()),
        pa.field("status_after", pa.string()),
    ]
)


def diff(before: pa.Table, after: pa.Table, tolerance: float = 0.0) -> pa.Table:
    """Cells that moved: `measured` by more than `tolerance`, another status, or there on one side only (status null).

    Both are cells; sorted by paper, table, row, column.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance {tolerance}: 0 or more is accepted")
    names = ("paper", "table", "row", "column")
    sides = [
        {tuple(cell[name] for name in names): cell for cell in table.select([*names, "measured", "status"]).to_pylist()}
        for table in (before, after)
    ]
    absent = {"measured": None, "status": None}
    moved = []
    for key in sorted({*sides[0], *sides[1]}):
        old, new = (side.get(key, absent) for side in sides)
        change = None if None in (old["measured"], new["measured"]) else new["measured"] - old["measured"]
        same_value = old["measured"] == new["measured"] or (change is not None and abs(change) <= tolerance)
        if not same_value or old["status"] != new["status"]:
            moved.append(
                {
                    **dict(zip(names, key, strict=True)),
                    "before": old["measured"],
                    "after": new["measured"],
                    "change": change,
                    "status_before": old["status"],
                    "status_after": new["status"],
                }
            )
    return pa.Table.from_pylist(moved, schema=MOVED)
