"""Verdicts on the papers' comparative statements, from the runs that were scored.

A comparison of metrics `holds` or `fails` when the 95 % interval of the difference (bootstrap over photographs and
seeds, paired) lies on one side of zero; with one seed the difference must also exceed twice the known spread between
seeds. Everything else is `undecided`. Counts are compared exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from unforge import demand, markdown, metrics, notation, paths, profiles, scores, specs, tables

VERDICTS = pa.schema(
    [
        pa.field("paper", pa.string(), nullable=False),
        pa.field("claim", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("line", pa.int64()),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("left_measured", pa.float64()),
        pa.field("right_measured", pa.float64()),
        pa.field("difference", pa.float64()),
        pa.field("ci_low", pa.float64()),
        pa.field("ci_high", pa.float64()),
        pa.field("relation", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("scale", pa.string(), nullable=False),
        pa.field("n", pa.int64()),
        pa.field("n_seeds", pa.int64()),
        pa.field("data", pa.string(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
    ]
)
"""One row per claim. `difference` is left minus right; `n_seeds` is that of the side that has fewer."""

MARKS = {"holds": "✓", "fails": "✗", "undecided": "?"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was measured of a claim, and the verdict."""

    verdict: str = "undecided"
    left_measured: float | None = None
    right_measured: float | None = None
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    scale: str = ""
    n: int | None = None
    n_seeds: int | None = None
    data: str = ""
    note: str = ""


def build(profile: profiles.Profile) -> pa.Table:
    """Verdicts on the claims of every paper, from the score and count files that are there."""
    reader = tables.Reader(profile=profile)
    rows = []
    for paper in specs.papers():
        known, number, spread = specs.tables(paper), demand.seeds(paper, profile), specs.seed_sd(paper)
        for claim_id, claim in specs.claims(paper).items():
            if known[claim.left.table].columns[claim.left.columns[0]].is_count:
                found = _counted(claim, known, reader)
            else:
                found = _compared(paper, claim, known, number, spread, reader)
            note = "; ".join(part.rstrip(".") for part in (found.note, claim.note) if part)
            rows.append(
                {
                    "paper": paper,
                    "claim": claim_id,
                    "text": claim.text,
                    "line": claim.line,
                    "metric": known[claim.left.table].columns[claim.left.columns[0]].metric,
                    "relation": claim.relation,
                    **vars(found),
                    "note": note,
                }
            )
    meta = paths.meta({"name": "claims", "profile": profile.name}, profile.seed, reader.inputs)
    return pa.Table.from_pylist(rows, schema=VERDICTS.with_metadata({"unforge": json.dumps(meta, sort_keys=True)}))


def judge(
    difference: float, ci_low: float | None, ci_high: float | None, relation: str, n_seeds: int, seed_sd: float | None
) -> tuple[str, str]:
    """Verdict on a difference (left minus right) of metrics, and what it rests on when it is `undecided`.

    `seed_sd` is the known standard deviation between seeds at this scale, None when it is not known.
    """
    if ci_low is None or ci_high is None:
        return "undecided", "fewer than two photographs"
    if ci_low <= 0 <= ci_high:
        return "undecided", "the interval includes zero"
    if n_seeds == 1:
        if seed_sd is None:
            return "undecided", "one seed, and the spread between seeds is not known at this scale"
        if abs(difference) <= 2 * seed_sd:
            return "undecided", f"one seed, and the difference is within twice the spread between seeds ({seed_sd:g})"
    return ("holds" if (difference > 0) == (relation == "greater") else "fails"), ""


def _counted(claim: specs.Claim, known: Mapping[str, specs.Table], reader: tables.Reader) -> Comparison:
    values = []
    for side in (claim.left, claim.right):
        table = known[side.table]
        value = tables.count_value(table.columns[side.columns[0]], specs.row(table, side.row), reader)
        if value.measured is None:
            return Comparison(note=f"not measured: {value.note}")
        values.append(value.measured)
    difference = values[0] - values[1]
    holds = difference > 0 if claim.relation == "greater" else difference < 0
    return Comparison(
        verdict="holds" if holds else "fails",
        left_measured=values[0],
        right_measured=values[1],
        difference=difference,
        scale="paper",
    )


def _compared(
    paper: str,
    claim: specs.Claim,
    known: Mapping[str, specs.Table],
    number: Mapping[tuple[str, str, str], int],
    spread: Mapping[str, float],
    reader: tables.Reader,
) -> Comparison:
    sides = []
    for side in (claim.left, claim.right):
        table = known[side.table]
        row = specs.row(table, side.row)
        rows = reader.cell_rows(paper, table, row, side.columns, number)
        missing = [testset for testset, per_seed in rows.items() if not per_seed]
        if missing or len({len(per_seed) for per_seed in rows.values()}) > 1:
            where = ", ".join(missing) or "every test set with one seed"
            return Comparison(note=f"not measured: {row.variant or 'full'} has no scores on {where}")
        sides.append((rows, table.columns[side.columns[0]].metric))
    if specs.row(known[claim.left.table], claim.left.row).origin:
        sides = [
            (rows, metric) for rows, (_, metric) in zip(tables.both([rows for rows, _ in sides]), sides, strict=True)
        ]
    parts = [[(per_seed, metric) for per_seed in rows.values()] for rows, metric in sides]
    found = metrics.paired(parts[0], parts[1], reader.profile.seed)
    files = [table for rows, _ in sides for per_seed in rows.values() for table in per_seed]
    data = {value for table in files for value in table["data"].unique().to_pylist()}
    scales = {str(scores.metadata(table)["scale"]) for table in files}
    measured = Comparison(
        left_measured=found.left,
        right_measured=found.right,
        difference=found.value,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        scale="+".join(sorted(filter(None, scales))),
        n=found.n,
        n_seeds=found.n_seeds,
        data=data.pop() if len(data) == 1 else "mixed",
    )
    if found.value is None:
        return Comparison(**{**vars(measured), "note": "no image counts on both sides"})
    known_sd = spread.get(measured.scale)
    verdict, note = judge(found.value, found.ci_low, found.ci_high, claim.relation, found.n_seeds, known_sd)
    return Comparison(**{**vars(measured), "verdict": verdict, "note": note})


def write(table: pa.Table, base_path: Path) -> None:
    """Verdicts as `<base_path>.parquet` and, for people, `<base_path>.md`."""
    markdown.write_parquet(table, base_path.with_name(base_path.name + ".parquet"))
    with paths.writing_file(base_path.with_name(base_path.name + ".md")) as partial:
        partial.write_text(text(table), encoding="utf-8")


def text(table: pa.Table) -> str:
    """Verdicts by paper, with scale, data, n and seeds beside each."""
    rows = table.to_pylist()
    lines = ["# Claims", ""]
    for paper in dict.fromkeys(row["paper"] for row in rows):
        percent = in_percent(paper)
        lines += [f"## {specs.paper(paper).title.strip()}", ""]
        lines += ["| claim | line | left | right | difference | verdict | on | note |", "| --- " * 8 + "|"]
        lines += [_line(row, row["claim"] in percent) for row in rows if row["paper"] == paper]
        lines.append("")
    lines.append(
        "Difference: left minus right [95 % interval]. Line: of the paper's text; none for a comparison we add."
    )
    return "\n".join(lines) + "\n"


def in_percent(paper: str) -> set[str]:
    """The claims of a paper whose numbers its tables print in percent."""
    known = specs.tables(paper)
    sides = {claim_id: claim.left for claim_id, claim in specs.claims(paper).items()}
    return {claim_id for claim_id, side in sides.items() if known[side.table].in_percent(side.columns[0])}


def _line(row: Mapping[str, Any], percent: bool) -> str:
    def shown(value: float | None) -> str:
        return "" if value is None else notation.show(value, row["metric"], percent)

    difference = shown(row["difference"])
    if row["ci_low"] is not None and row["ci_high"] is not None:
        difference += f" [{shown(row['ci_low'])}, {shown(row['ci_high'])}]"
    basis = [f"{row['scale']} scale" if row["scale"] else "", row["data"].replace("_", "-")]
    basis += [f"n {row['n']}" if row["n"] is not None else ""]
    basis += [f"{row['n_seeds']} seed{'s' if row['n_seeds'] != 1 else ''}" if row["n_seeds"] is not None else ""]
    parts = [
        markdown.escape(row["text"]),
        "" if row["line"] is None else str(row["line"]),
        shown(row["left_measured"]),
        shown(row["right_measured"]),
        difference,
        f"{MARKS[row['verdict']]} {row['verdict']}",
        ", ".join(part for part in basis if part),
        markdown.escape(row["note"]),
    ]
    return "| " + " | ".join(parts) + " |"
