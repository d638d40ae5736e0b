"""Tables as files: Parquet for programs, Markdown for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unforge import demand, notation, paths, specs
from unforge.tables import STATUSES

MARKS = {"match": "✓", "differs": "≠", "not_comparable": "~", "cited": "cited", "not_run": "–", "unavailable": "×"}


def write_parquet(table: pa.Table, path: Path) -> None:
    """Equal tables give equal bytes; the file is there whole or not at all."""
    with paths.writing_file(path) as partial:
        pq.write_table(table, partial, version="2.6", data_page_version="1.0", compression="zstd", compression_level=3)


def write(table: pa.Table, base_path: Path) -> None:
    """Cells as `<base_path>.parquet` and, for people, `<base_path>.md`."""
    write_parquet(table, base_path.with_name(base_path.name + ".parquet"))
    with paths.writing_file(base_path.with_name(base_path.name + ".md")) as partial:
        partial.write_text(text(table), encoding="utf-8")


def text(table: pa.Table) -> str:
    """One table as Markdown: measured with its interval and status mark, printed below it, baselines, notes."""
    about = json.loads(table.schema.metadata[b"unforge"])["config"]
    spec = specs.tables(about["paper"])[about["name"]]
    cells = table.to_pylist()
    by_row: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in cells:
        by_row.setdefault(cell["row"], {})[cell["column"]] = cell
    kind, _, number = about["name"].partition("_")
    lines = [
        f"# {specs.paper(about['paper']).title.strip()}: {kind.capitalize()} {notation.numbered(number)}",
        "",
        spec.caption.strip(),
        "",
    ]
    lines += [_conditions(cells, about["profile"]), ""]
    blocks = list(dict.fromkeys(row.block for row in spec.rows))
    for block in blocks:
        lines += [f"## {escape(block)}", ""] if block else []
        lines += [_line(["", *(escape(column.label) for column in spec.columns.values())])]
        lines += [_line(["---"] * (len(spec.columns) + 1))]
        for row in spec.rows:
            if row.block == block:
                lines.append(_line([escape(row.label), *(_shown(by_row[row.id][name]) for name in spec.columns)]))
        for name, variant in demand.BASELINES.items():
            values = [_same(cells, column, name, block) for column in spec.columns]
            if any(values):
                label = {"all": "all manipulated", "centre": "centre prior"}[variant]
                lines.append(_line([f"*constant: {label}*", *values]))
        lines.append("")
    legend = ", ".join(f"{MARKS[status]} {status.replace('_', ' ')}" for status in STATUSES if status != "cited")
    lines += [f"Measured [95 % interval] status; p: printed in the paper. {legend}.", ""]
    lines += [f"- {note}" for note in spec.notes]
    lines += [f"- Erratum, {escape(row.label)}: {row.errata}" for row in spec.rows if row.errata]
    reasons = Counter(cell["note"] for cell in cells if cell["note"])
    errata = {row.errata for row in spec.rows}
    lines += [f"- {note} ({count} cells)" for note, count in sorted(reasons.items()) if note not in errata]
    return "\n".join(lines).rstrip() + "\n"


def _conditions(cells: list[dict[str, Any]], profile: str) -> str:
    """What the measured cells have in common."""
    measured = [cell for cell in cells if cell["measured"] is not None and cell["metric"] not in specs.COUNTS]
    if not measured:
        return f"Profile `{profile}`."
    data = ", ".join(sorted({cell["data"].replace("_", "-") for cell in measured}))
    scale = ", ".join(sorted({cell["scale"] for cell in measured if cell["scale"]}))
    numbers = sorted({cell["n_seeds"] for cell in measured})
    many = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"Profile `{profile}`: {scale} scale, data {data}, seeds per run {many}."


def _shown(cell: Mapping[str, Any]) -> str:
    printed = f"p {escape(cell['printed'])}" if cell["printed"] else ""
    if cell["measured"] is None:
        return " ".join(part for part in (MARKS[cell["status"]], printed) if part)
    text, low, high = (
        None if cell[name] is None else notation.show(cell[name], cell["metric"], bool(cell["percent"]))
        for name in ("measured", "ci_low", "ci_high")
    )
    text = str(text)
    if low is not None and high is not None:
        text += f" [{low}, {high}]"
    text += f" {MARKS[cell['status']]}"
    return f"{text}<br>{printed}" if printed else text


def _same(cells: list[dict[str, Any]], column: str, key: str, block: str) -> str:
    """A baseline of a column when all its cells in a block agree on it."""
    of_column = [c for c in cells if c["column"] == column and c["block"] == block]
    values = {c[key] for c in of_column if c[key] is not None}
    percent = any(c["percent"] and not notation.in_percent(c["metric"]) for c in of_column)
    return notation.show(values.pop(), "", percent) if len(values) == 1 else ""


def _line(parts: Iterable[str]) -> str:
    return "| " + " | ".join(parts) + " |"


def escape(text: str) -> str:
    """Text as one cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
