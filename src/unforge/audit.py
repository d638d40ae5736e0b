"""What the papers' own tables violate: bounds, averages, contradictions. Printed numbers only, nothing is measured.

The rules are those of `unforge.rules`, and that the text agrees with the tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from unforge import markdown, notation, paths, specs
from unforge.rules import RULES, SLACK, Finding, Printed, mean, shown

FINDINGS = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("paper", "table", "row", "column", "rule", "detail")]
)


def audit() -> pa.Table:
    """Findings of every rule on every paper: paper, table, row, column, rule, detail."""
    rows = []
    for paper in specs.papers():
        numbers = printed(paper)
        for rule in RULES:
            for found in rule(numbers):
                rows.append(_row(paper, found))
        rows += [_row(paper, found) for found in claims(paper, numbers)]
    rows.sort(key=lambda row: (row["paper"], len(row["table"]), *row.values()))
    meta = json.dumps(paths.meta({"name": "audit"}, 0, {}), sort_keys=True)
    return pa.Table.from_pylist(rows, schema=FINDINGS.with_metadata({"unforge": meta}))


def printed(paper: str) -> list[Printed]:
    """Every printed number of a paper; dashes are left out."""
    found = []
    for name, table in specs.tables(paper).items():
        for row in table.rows:
            for (column, spec), text in zip(table.columns.items(), row.printed, strict=False):
                percent = table.in_percent(column)
                value = notation.target(text, spec.metric, percent)
                if text is None or value is None:
                    continue
                half = notation.rounding(text, spec.metric) / (100 if percent else 1)
                found.append(
                    Printed(
                        table=name,
                        row=row.id,
                        column=column,
                        subject=_subject(table, row, column),
                        metric=spec.metric,
                        testsets=tuple(sorted(table.testsets(column))),
                        part=spec.part,
                        relative_to=spec.relative_to,
                        text=text,
                        low=value - half,
                        high=value + half,
                        percent=percent,
                        parts=spec.average,
                        gain_over=row.gain_over,
                    )
                )
    return found


def _subject(table: specs.Table, row: specs.Row, column: str) -> str:
    """A re-run row by method, variant and protocol; a cited one by its label's letters and digits."""
    if row.origin:
        return f"{row.origin}/{row.variant}/{table.signal(row, column)}"
    if row.method is not None:
        return f"{row.method}/{row.variant or 'full'}"
    return "".join(letter for letter in row.label.lower() if letter.isalnum())


def claims(paper: str, numbers: list[Printed]) -> Iterator[Finding]:
    """A comparative statement of the paper agrees with the numbers it prints: in order, and by what it says."""
    by_place = {(n.table, n.row, n.column): n for n in numbers}
    for claim_id, claim in specs.claims(paper).items():
        sides = [
            [by_place.get((side.table, side.row, column)) for column in side.columns]
            for side in (claim.left, claim.right)
        ]
        left, right = ([n for n in side if n is not None] for side in sides)
        if claim.line is None or len(left) < len(sides[0]) or len(right) < len(sides[1]):
            continue
        if claim.relation == "greater":
            most = mean(n.high for n in left) - mean(n.low for n in right)
        else:
            most = mean(n.high for n in right) - mean(n.low for n in left)
        if most <= SLACK:
            values = " and ".join(shown(mean((n.low + n.high) / 2 for n in side), left[0]) for side in (left, right))
            detail = f"line {claim.line}, {claim_id}: {claim.text}; printed: {values}"
            yield Finding(at=left[0], rule="claim", detail=detail)
        if claim.gain:
            yield from _gain(claim_id, claim, left, right)


def _gain(claim_id: str, claim: specs.Claim, left: list[Printed], right: list[Printed]) -> Iterator[Finding]:
    """The difference that a claim states is that of the printed numbers."""
    stated = notation.target(claim.gain, left[0].metric, left[0].percent)
    half = notation.rounding(claim.gain) / (100 if left[0].percent else 1)
    low, high = (
        mean(n.low for n in left) - mean(n.high for n in right),
        mean(n.high for n in left) - mean(n.low for n in right),
    )
    if stated is not None and (stated - half > high + SLACK or stated + half < low - SLACK):
        detail = (
            f"line {claim.line}, {claim_id}: the text says {claim.gain}; printed: {shown((low + high) / 2, left[0])}"
        )
        yield Finding(at=left[0], rule="gain", detail=detail)


def _row(paper: str, found: Finding) -> dict[str, str]:
    at = found.at
    return {
        "paper": paper,
        "table": at.table,
        "row": at.row,
        "column": at.column,
        "rule": found.rule,
        "detail": found.detail,
    }


def write(table: pa.Table, base_path: Path) -> None:
    """Findings as `<base_path>.parquet` and, for people, `<base_path>.md`."""
    markdown.write_parquet(table, base_path.with_name(base_path.name + ".parquet"))
    with paths.writing_file(base_path.with_name(base_path.name + ".md")) as partial:
        partial.write_text(text(table), encoding="utf-8")


def text(table: pa.Table) -> str:
    """Findings by paper; a paper without any says so."""
    rows = table.to_pylist()
    lines = ["# Audit of the printed tables", ""]
    for paper in specs.papers():
        lines += [f"## {specs.paper(paper).title.strip()}", ""]
        own = [row for row in rows if row["paper"] == paper]
        if own:
            lines += ["| table | row | column | rule | detail |", "| --- " * 5 + "|"]
            lines += [
                "| " + " | ".join(markdown.escape(row[name]) for name in FINDINGS.names[1:]) + " |" for row in own
            ]
        else:
            lines.append(f"Nothing found in {len(printed(paper))} printed numbers.")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
