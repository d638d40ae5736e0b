"""What the page shows, worked out from the files of one profile: no figures are made up here, only arranged."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import unforge
from unforge import claims, generators, metrics, notation, paths, profiles, specs
from unforge.report import assumptions, charts, gallery
from unforge.report.parts import Block, Cell, Claim, Figure, Head, Paper, Row, Table

STATUSES: dict[str, tuple[str, str, str]] = {
    "match": ("✓", "match", "same data, scale and definition as the paper, within the tolerance set beforehand"),
    "differs": ("≠", "differs", "same data, scale and definition as the paper, outside the tolerance"),
    "not_comparable": ("~", "not comparable", "measured, but on a stand-in or at another scale: never compared"),
    "cited": ("“", "cited", "the paper's number; the method is not re-run here"),
    "not_run": ("–", "not run", "no score file for this cell yet"),
    "unavailable": ("×", "unavailable", "data or weights are not there"),
}
"""Status to its mark, its word and what it means."""

VERDICTS: dict[str, tuple[str, str]] = {
    "holds": ("✓", "the interval of the difference lies on the claimed side of zero"),
    "fails": ("✗", "the interval lies on the other side"),
    "undecided": ("?", "the interval includes zero, or there are too few seeds"),
}


def context(profile: str) -> dict[str, Any]:
    """Everything the template needs, for `profiles/<profile>.yaml` of the project at the working directory."""
    settings = profiles.load(profile)
    cells: list[dict[str, Any]] = []
    papers = [_paper(name, profile, cells) for name in specs.papers()]
    package = Path(unforge.__file__).parent
    return {
        "profile": settings,
        "papers": papers,
        "statuses": STATUSES,
        "verdicts": VERDICTS,
        "summary": _summary(cells, papers),
        "testsets": _testsets(cells),
        "generators": _generators(profile),
        "assumptions": assumptions.find(package),
    }


def _paper(name: str, profile: str, cells: list[dict[str, Any]]) -> Paper:
    about = specs.paper(name)
    reports = paths.report(profile).parent
    verdicts = _rows(reports / "claims.parquet", name)
    audit = _rows(reports / "audit.parquet", name)
    quotes = {key: claim.quote for key, claim in specs.claims(name).items()}
    percent = claims.in_percent(name)
    tables = []
    for number, table in specs.tables(name).items():
        rows = _rows(Path(f"{paths.table(profile, f'{name}.{number}')}.parquet"))
        cells.extend(rows or [])
        tables.append(_table(name, number, table, rows))
    return Paper(
        id=name,
        title=about.title,
        citation=about.citation,
        text=about.text,
        tables=tables,
        figures=[_figure(name, number, figure, profile) for number, figure in specs.figures(name).items()],
        claims=[_claim(row, quotes.get(row["claim"], ""), row["claim"] in percent) for row in verdicts or []],
        claims_built=verdicts is not None,
        audit=[{key: _text(value) for key, value in row.items()} for row in audit or []],
        audit_built=audit is not None,
        walls=gallery.walls(name, profile),
    )


def _generators(profile: str) -> list[list[str]]:
    """Titles and rows of what the generators of images are; empty when nothing was built."""
    rows = _rows(paths.report(profile).parent / "generators.parquet") or []
    return [list(generators.TITLES), *([generators.shown(row[name]) for name in row] for row in rows)] if rows else []


def _rows(path: Path, paper: str | None = None) -> list[dict[str, Any]] | None:
    """Rows of a Parquet file, of one paper if asked; None when the file was not built."""
    if not path.is_file():
        return None
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows if paper is None else [row for row in rows if row["paper"] == paper]


def command(paper: str, name: str) -> str:
    """The command that builds one table or figure and what it needs."""
    return f"dvc repro papers/{paper}/dvc.yaml:{name}"


def _title(name: str) -> str:
    """`Table 2`, `Figure S1a`; of a figure that its paper calls a table (`figure_table_3`) that name."""
    kind, _, number = name.removeprefix("figure_" if name.startswith("figure_table_") else "").partition("_")
    return f"{kind.capitalize()} {notation.numbered(number).replace('_', ' ')}"


def _place(place: str, name: str) -> str:
    """`Table 2 (caption: line 153)` without the name that stands beside it."""
    rest = place.removeprefix(_title(name))
    return place if rest == place else rest.strip(" ,()")


def _table(paper: str, name: str, spec: specs.Table, rows: list[dict[str, Any]] | None) -> Table:
    shared: dict[str, Any] = {
        "id": f"{paper}.{name}",
        "name": _title(name),
        "caption": spec.caption,
        "place": _place(spec.place, name),
        "protocol": " and ".join(spec.protocols())
        or ("each model by itself" if any(row.origin for row in spec.rows) else "nothing is trained"),
        "command": command(paper, name),
    }
    if rows is None:
        return Table(**shared, built=False)
    columns = {row["column"]: [r for r in rows if r["column"] == row["column"]] for row in rows}
    heads = {column: _head(column, cells) for column, cells in columns.items()}
    notes = {note: number for number, note in enumerate(dict.fromkeys(r["note"] for r in rows if r["note"]), start=1)}
    errata = {row.id: row.errata for row in spec.rows}
    blocks: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        blocks.setdefault(row["block"] or "", {}).setdefault(row["row"], []).append(row)
    digits = {column: _digits(cells) for column, cells in columns.items()}
    return Table(
        **shared,
        built=True,
        heads=list(heads.values()),
        blocks=[
            Block(name=block, rows=[_row(cells, errata, heads, digits, notes) for cells in of_block.values()])
            for block, of_block in blocks.items()
        ],
        notes=list(spec.notes),
        cell_notes=list(notes),
        counts=dict(Counter(row["status"] for row in rows)),
        conditions=_conditions(rows),
    )


def _head(column: str, cells: list[dict[str, Any]]) -> Head:
    first = cells[0]
    every, centre = _same(cells, "baseline_all"), _same(cells, "baseline_centre")
    percent = bool(first.get("percent")) and not notation.in_percent(first["metric"])
    data = sorted({cell["data"] for cell in cells if cell["data"]})
    return Head(
        id=column,
        label=first["column_label"],
        metric=first["metric"],
        testset=", ".join((first["testset"] or "").split("+")),
        data=", ".join(_words(kind) for kind in data),
        baseline_all=_shown(every, "", 1 if percent else 3, percent),
        baseline_centre=_shown(centre, "", 1 if percent else 3, percent),
    )


def _same(cells: list[dict[str, Any]], key: str) -> float | None:
    values = {cell[key] for cell in cells if cell[key] is not None}
    return float(values.pop()) if len(values) == 1 else None


def _row(
    cells: list[dict[str, Any]],
    errata: Mapping[str, str],
    heads: Mapping[str, Head],
    digits: Mapping[str, int],
    notes: Mapping[str, int],
) -> Row:
    first = cells[0]
    by_column = {cell["column"]: cell for cell in cells}
    method = first["method"]
    origin = f"{method} · {first['variant'] or 'full'}" if method else "not re-run"
    pretraining = sorted({cell["pretraining"] for cell in cells if cell["pretraining"]})
    if pretraining:
        origin += f" · pretraining: {', '.join(_words(word) for word in pretraining)}"
    return Row(
        id=first["row"],
        label=first["row_label"],
        origin=origin,
        line=next((cell["line"] for cell in cells if cell["line"] is not None), None),
        errata=errata.get(first["row"], ""),
        cells=[_cell(by_column.get(column), head, digits[column], notes) for column, head in heads.items()],
    )


def _cell(cell: dict[str, Any] | None, head: Head, digits: int, notes: Mapping[str, int]) -> Cell:
    if cell is None:
        return Cell(column=head.id)
    baseline, percent = "", bool(cell.get("percent"))
    if not head.baseline_all and cell["baseline_all"] is not None:
        baseline = f"all {_shown(cell['baseline_all'], '', digits, percent)}"
        if cell["baseline_centre"] is not None:
            baseline += f", centre {_shown(cell['baseline_centre'], '', digits, percent)}"
    return Cell(
        column=cell["column"],
        measured=_shown(cell["measured"], cell["metric"], digits, percent),
        interval=_interval(cell["ci_low"], cell["ci_high"], digits, cell["metric"], percent),
        printed=cell["printed"] or "",
        status=cell["status"],
        spread=_spread(cell),
        baseline=baseline,
        weak=weak(cell),
        notes=[notes[cell["note"]]] if cell["note"] else [],
    )


def weak(cell: Mapping[str, Any]) -> bool:
    """True when a measured cell is not shown to be above the better constant baseline on the same images."""
    known = [cell[name] for name in ("baseline_all", "baseline_centre") if cell[name] is not None]
    if cell["measured"] is None or not known or _lower(cell["metric"]):
        return False
    low = cell["ci_low"] if cell["ci_low"] is not None else cell["measured"]
    return bool(low <= max(known))


def _lower(metric: str) -> bool:
    """Whether less is better: a constant prediction is no measure of such a number."""
    return metric in metrics.names() and metrics.load(metric).lower


def _digits(cells: list[dict[str, Any]]) -> int:
    """Decimals of a column: as the paper prints it; three, of percents one, where it prints none."""
    found = [notation.decimals(cell["printed"]) for cell in cells if cell["printed"] and "." in cell["printed"]]
    return max(found, default=1 if any(cell.get("percent") for cell in cells) else 3)


def _shown(value: float | None, metric: str, digits: int = 3, percent: bool = False) -> str:
    """As the paper would print it: scores with its decimals, parameters in millions, operations in billions."""
    if value is not None and (percent or notation.in_percent(metric)):
        return _number(100 * value, digits if percent and digits < 3 else 1)
    if value is None or metric not in ("params", "macs", "input_size", "flops"):
        return _number(value, digits)
    if metric == "flops":
        return _number(value / 1e9, 1)
    if metric == "input_size":
        return f"{value:.0f}×{value:.0f}"
    unit, name = (1e6, "M") if metric == "params" else (1e9, "G")
    return f"{value / unit:.{max(2, min(digits, 3))}f}{name}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(low: float | None, high: float | None, digits: int, metric: str = "", percent: bool = False) -> str:
    ends = [_shown(end, metric, digits, percent) for end in (low, high)]
    return "" if low is None or high is None else " to ".join(ends)


def _spread(row: Mapping[str, Any]) -> str:
    if row["measured"] is None or row["n"] is None:
        return ""
    parts = [f"n {row['n']}"]
    if row["n_seeds"]:
        seeds = f"{row['n_seeds']} seed" + ("s" if row["n_seeds"] != 1 else "")
        sd = row.get("seed_sd")
        shown = "" if sd is None else f"{100 * sd:.1f}" if row.get("percent") else f"{sd:.3f}"
        parts.append(seeds if sd is None or row["n_seeds"] == 1 else f"{seeds}, sd {shown}")
    return " · ".join(parts)


def _conditions(rows: Iterable[Mapping[str, Any]]) -> str:
    """What the measured cells have in common: scale and data, in words."""
    measured = [row for row in rows if row["measured"] is not None]
    counted = [row for row in measured if row.get("metric") in specs.COUNTS]
    scored = [row for row in measured if row.get("metric") not in specs.COUNTS]
    scales = sorted({row["scale"] for row in scored if row["scale"]})
    data = sorted({row["data"] for row in scored if row["data"]})
    on = f", on {' and '.join(_words(kind) for kind in data)} images" if data else ""
    parts = [f"{', '.join(scales)} scale{on}"] if scored else []
    parts += ["counts at paper scale, without images"] if counted else []
    return "; ".join(parts) or "nothing was measured"


def _words(text: str) -> str:
    return {"stand_in": "stand-in", "mixed": "real and stand-in"}.get(text, text)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


SAYS = {
    "curves": "bands are 95 % intervals. The paper prints curves, no numbers.",
    "by_type": "lines on the bars are 95 % intervals. The paper prints bars, no numbers.",
    "signals_by_type": "lines on the bars are 95 % intervals.",
    "codebook": "what the codebook alone shows. The paper prints curves, no numbers.",
    "dynamics": "training images of each class that are named rightly; bands are 95 % intervals. The paper prints "
    "curves, no numbers.",
    "states": "a point for each test image; the number over a picture has its 95 % interval. The paper prints "
    "pictures, no numbers.",
    "weights": "the band is the 95 % interval of the average, those of the test sets stand below. The paper prints "
    "curves, no numbers.",
    "quantiles": "attention over the patches of real images, 1 where it is even: means over the images of each image's "
    "quantiles; bands are 95 % intervals. The paper prints a picture, no numbers.",
    "attention": "frames by a hash of their key, never by result. Bright is much attention, each picture scaled to its "
    "own maximum, which stands under it: 1 is even attention. The paper's own frames are not shown.",
    "samples": "images by a hash of their key, never by result. The paper's own are not shown.",
}
"""What a figure of a kind shows."""


def _figure(paper: str, name: str, spec: specs.Figure, profile: str) -> Figure:
    path = Path(f"{paths.table(profile, f'{paper}.{name}')}.parquet")
    drawn, points, conditions = "", [], ""
    if path.is_file():
        data = pq.read_table(path)
        drawn = charts.svg(data, kind=spec.kind, metric=spec.metric, salt=f"{paper}.{name}")
        rows = data.to_pylist()
        points = [_point(row) for row in rows if spec.kind != "states" or row["key"] is None]
        conditions = _conditions(rows)
    return Figure(
        id=f"{paper}.{name}",
        name=_title(name),
        caption=spec.caption,
        place=_place(spec.place, name),
        metric=spec.metric or "",
        says=SAYS[spec.kind],
        command=command(paper, name),
        notes=spec.notes,
        svg=drawn,
        points=points,
        conditions=conditions,
    )


def _point(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "panel": _text(row.get("panel_label") or row["panel"]),
        "level": "unperturbed" if row["level"] is None else f"{row['level']:g}",
        "series": _text(row.get("series_label") or row["series"]),
        "measured": _number(row["measured"], 3),
        "interval": _interval(row["ci_low"], row["ci_high"], 3),
        "n": _text(row["n"]),
        "status": row["status"],
    }


def _claim(row: Mapping[str, Any], quote: str, percent: bool) -> Claim:
    difference, low, high = row["difference"], row["ci_low"], row["ci_high"]
    digits, scale = (1, 100) if percent else (3, 1)
    bar = None
    if difference is not None and low is not None and high is not None:
        bar = (_share(low), _share(difference), _share(high))
    basis = [_spread({**row, "measured": difference})]
    basis += [f"{row['scale']} scale"] if row["scale"] else []
    basis += [_words(row["data"])] if row["data"] else []
    return Claim(
        id=row["claim"],
        text=row["text"],
        quote=quote,
        line=row["line"],
        relation="should be greater than" if row["relation"] == "greater" else "should be less than",
        left=_shown(row["left_measured"], row["metric"], digits, percent),
        right=_shown(row["right_measured"], row["metric"], digits, percent),
        difference=("+" if difference and difference > 0 else "") + _shown(difference, row["metric"], digits, percent),
        interval="" if low is None or high is None else f"{scale * low:+.{digits}f} to {scale * high:+.{digits}f}",
        bar=bar,
        verdict=row["verdict"],
        basis=" · ".join(part for part in basis if part),
        note=row["note"] or "",
    )


def _share(value: float) -> float:
    """Where a difference in [-1,1] lies on a bar of 100, square-root spaced so that small ones show."""
    bounded = max(-1.0, min(1.0, value))
    return round(50 + math.copysign(50 * math.sqrt(abs(bounded)), bounded), 2)


def _testsets(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each set that a measured cell was measured on: real or stand-in, images, cells."""
    measured = [cell for cell in cells if cell["measured"] is not None and cell["testset"]]
    names = sorted({cell["testset"] for cell in measured if "+" not in cell["testset"]})
    found = []
    for name in names:
        of_set = [cell for cell in measured if cell["testset"] == name]
        data = ", ".join(_words(kind) for kind in sorted({cell["data"] for cell in of_set if cell["data"]}))
        images = max((cell["n"] for cell in of_set if cell["n"] is not None), default=None)
        found.append({"name": name, "data": data, "images": images, "cells": len(of_set)})
    return found


def _summary(cells: list[dict[str, Any]], papers: list[Paper]) -> dict[str, Any]:
    status = Counter(cell["status"] for cell in cells)
    measured = [cell for cell in cells if cell["measured"] is not None]
    on_images = [cell for cell in measured if cell["metric"] not in specs.COUNTS]
    based = [cell for cell in on_images if cell["baseline_all"] is not None or cell["baseline_centre"] is not None]
    return {
        "cells": len(cells),
        "printed": sum(cell["printed"] is not None for cell in cells),
        "measured": len(measured),
        "counts": len(measured) - len(on_images),
        "on_images": len(on_images),
        "real": sum(cell["data"] == "real" for cell in on_images),
        "stand_in": sum(cell["data"] == "stand_in" for cell in on_images),
        "mixed": sum(cell["data"] == "mixed" for cell in on_images),
        "small": sum(cell["scale"] == "small" for cell in on_images),
        "based": len(based),
        "weak": sum(weak(cell) for cell in based),
        "status": status,
        "verdicts": Counter(claim.verdict for paper in papers for claim in paper.claims),
        "unmeasured": sum(not claim.difference for paper in papers for claim in paper.claims),
        "claims": sum(len(paper.claims) for paper in papers),
        "audit": sum(len(paper.audit) for paper in papers),
        "missing": [table.id for paper in papers for table in paper.tables if not table.built]
        + [figure.id for paper in papers for figure in paper.figures if not figure.svg],
    }
