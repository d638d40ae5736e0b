"""Figures from score files: the points that are drawn, with what they rest on. Needs no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unforge import demand, paths, pictures, profiles, specs, tables
from unforge.tables import CELLS, Reader, Value

POINTS = pa.schema(
    [
        pa.field("paper", pa.string(), nullable=False),
        pa.field("figure", pa.string(), nullable=False),
        pa.field("panel", pa.string(), nullable=False),
        pa.field("panel_label", pa.string(), nullable=False),
        pa.field("level", pa.float64(), nullable=False),
        pa.field("series", pa.string(), nullable=False),
        pa.field("series_label", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        *[CELLS.field(name) for name in CELLS.names[CELLS.names.index("measured") : CELLS.names.index("note") + 1]],
        pa.field("method", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
    ]
)
"""One row per point of a figure. Curves: a panel for each perturbation, `level` in its module's units. By type: a panel
for each kind of forgery, `level` 0 or the number in the signal's name. Codebook: panels `usage` (`level`: rank of the
code, `measured`: its share) and `similar` (IoU of two masks, share of their tokens that differ). Dynamics: a panel for
each run, a series for each class, `level` the step; panel `final`: after training, on test images. Weights: a series
for each test set and one for their mean, `level` the weight of the loss. Quantiles: `level` the quantile, 0 to 1."""

SCHEMAS = {
    "states": pictures.STATE_COLUMNS,
    "samples": pictures.SAMPLE_COLUMNS,
    "attention": pictures.SAMPLE_COLUMNS,
}
"""What the points of some kinds have beside `POINTS`: a panel for each run, a series for each class, or for each part
of the sample number `level`. Attention: a panel for real and for fake frames, a series for each column of pictures,
`measured` the largest weight over the even one."""
MEAN = "mean"
"""Series of `weights` that is the mean over the test sets."""

KINDS = ("splice", "copy_move", "removal", "regenerated")
"""Kinds of forgery that are told apart, in the order of the papers' figures."""
BINS = 10
"""Bins of [0,1] in which pairs of masks are gathered."""

Numbers = Mapping[tuple[str, str, str], int]
Maker = Callable[[str, specs.Figure, Numbers, Reader], Iterator[dict[str, Any]]]


def build(paper: str, name: str, profile: profiles.Profile) -> pa.Table:
    """Points of one figure, from the files that are there. ValueError when the paper has no such figure."""
    figures = specs.figures(paper)
    if name not in figures:
        raise ValueError(f"{paper} has no figure{specs.near(name, figures)}")
    figure = figures[name]
    reader = Reader(profile=profile)
    makers: dict[str, Maker] = {
        "curves": _curves,
        "by_type": _by_type,
        "signals_by_type": _signals,
        "codebook": _codebook,
        "dynamics": pictures.dynamics,
        "states": pictures.states_in_a_plane,
        "samples": pictures.samples,
        "weights": _weights,
        "quantiles": _quantiles,
        "attention": pictures.attention,
    }
    points = [
        {"paper": paper, "figure": name, "protocol": figure.protocol or "", **point}
        for point in makers[figure.kind](paper, figure, demand.seeds(paper, profile), reader)
    ]
    schema = pa.schema([*POINTS, *SCHEMAS.get(figure.kind, ())])
    return pa.Table.from_pylist(points, schema=tables.with_meta(schema, paper, name, profile, reader))


def _curves(paper: str, figure: specs.Figure, number: Numbers, reader: Reader) -> Iterator[dict[str, Any]]:
    """A panel's unperturbed point is scored on the images its perturbed sets hold."""
    metric = figure.metric or ""
    for panel in figure.panels:
        stops = demand.levels(panel)
        for series in figure.series:
            rows = _rows(paper, figure, series, number, [testset for _, testset in stops], reader)
            if panel.testset in rows:
                shared = {key for table in rows[stops[-1][1]] for key in table["key"].to_pylist()}
                rows[panel.testset] = [tables.keep(table, shared) for table in rows[panel.testset]] if shared else []
            for level, testset in stops:
                value = tables.metric_value(metric, figure.protocol or "", {testset: rows[testset]}, reader)
                yield _point(panel.perturbation, panel.label, level, series, testset, value, metric)


def _by_type(paper: str, figure: specs.Figure, number: Numbers, reader: Reader) -> Iterator[dict[str, Any]]:
    """The mean over the sets that have images of the kind."""
    metric = figure.metric or ""
    for series in figure.series:
        rows = _rows(paper, figure, series, number, figure.testsets, reader)
        for kind in KINDS:
            of_kind = _of_kind(rows, kind)
            value = _value(metric, figure, of_kind, reader)
            yield _point(kind, _words(kind), 0.0, series, "+".join(of_kind), value, metric)


def _signals(paper: str, figure: specs.Figure, number: Numbers, reader: Reader) -> Iterator[dict[str, Any]]:
    """The mean of a signal over the images of a kind, of each set alike; authentic images are a kind here."""
    for series in figure.series:
        rows = _rows(paper, figure, series, number, figure.testsets, reader)
        tables_ = [table for per_seed in rows.values() for table in per_seed]
        names = {name for table in tables_ for row in table["signals"].to_pylist() for name, _ in row or ()}
        levels = sorted(int(name.removeprefix(figure.signals)) for name in names if name.startswith(figure.signals))
        for kind in (*KINDS, "authentic"):
            of_kind = _of_kind(rows, kind)
            for level in levels or [0]:
                signal = f"{figure.signals}{level}"
                scored = {t: [_scored(table, signal) for table in per_seed] for t, per_seed in of_kind.items()}
                value = _value("score_mean", figure, scored, reader)
                yield _point(kind, _words(kind), float(level), series, "+".join(scored), value, "score_mean")


def _weights(paper: str, figure: specs.Figure, number: Numbers, reader: Reader) -> Iterator[dict[str, Any]]:
    """A metric over the weight that a variant was trained with: on each test set, and the mean over them."""
    metric = figure.metric or ""
    for series in sorted(figure.series, key=lambda one: one.level or 0.0):
        rows = _rows(paper, figure, series, number, figure.testsets, reader)
        lines = {name: [name] for name in figure.testsets} | {MEAN: list(figure.testsets)}
        for name, testsets in lines.items():
            value = _value(metric, figure, {testset: rows[testset] for testset in testsets}, reader)
            point = _point("weights", figure.axis, series.level or 0.0, series, "+".join(testsets), value, metric)
            yield point | {"series": name, "series_label": figure.labels.get(name, "Average" if name == MEAN else name)}


def _quantiles(paper: str, figure: specs.Figure, number: Numbers, reader: Reader) -> Iterator[dict[str, Any]]:
    """Mean over the real images of the test sets of each of their quantiles of a signal."""
    for series in figure.series:
        rows = _rows(paper, figure, series, number, figure.testsets, reader)
        real = {t: [table.filter(pc.equal(table["label"], 0)) for table in per_seed] for t, per_seed in rows.items()}
        names = {n for per_seed in real.values() for table in per_seed for n in _signal_names(table, series.signals)}
        numbers = sorted(int(name.removeprefix(series.signals)) for name in names)
        by_number = {int(name.removeprefix(series.signals)): name for name in names}
        for place in numbers or [0]:
            signal = by_number.get(place, series.signals)
            scored = {t: [_scored(table, signal) for table in per_seed] for t, per_seed in real.items()}
            value = replace(_value("score_mean", figure, scored, reader), baseline_all=None, baseline_centre=None)
            level = place / max(1, max(numbers, default=0))
            yield _point("real", "real images", level, series, "+".join(scored), value, "score_mean")


def _signal_names(table: pa.Table, start: str) -> set[str]:
    """Signals of some rows whose name is `start` and a number."""
    names = {name for row in table["signals"].to_pylist() for name, _ in row or ()}
    return {name for name in names if name.startswith(start) and name.removeprefix(start).isdigit()}


def _codebook(paper: str, figure: specs.Figure, number: Numbers, reader: Reader) -> Iterator[dict[str, Any]]:
    """Nothing here is compared with a printed number: the paper shows no axis."""
    folder = paths.root() / paths.codebook(reader.profile.name, figure.codebook)
    series = specs.Series(id=figure.codebook, label=figure.codebook, method=figure.codebook)
    about = {"status": "not_comparable", "scale": reader.profile.model, "pretraining": figure.codebook}
    files = {panel: folder / f"{panel}.parquet" for panel in ("usage", "similar")}
    if not all(path.is_file() for path in files.values()):
        yield _point("usage", "codes", 0.0, series, "", Value(note=f"no codebook {figure.codebook}"), "share")
        return
    for path in files.values():
        reader.inputs[str(path.relative_to(paths.root()))] = paths.sha256(path)
    counts = np.sort(pq.read_table(files["usage"])["count"].to_numpy())[::-1]
    for rank, count in enumerate(counts):
        value = Value(measured=float(count / max(1, counts.sum())), n=int(counts.sum()), **about)  # type: ignore[arg-type]
        yield _point("usage", "share of the tokens, by rank of the code", float(rank), series, "", value, "share")
    pairs = pq.read_table(files["similar"])
    iou, differing = pairs["iou"].to_numpy(), pairs["differing"].to_numpy()
    places = np.minimum((iou * BINS).astype(int), BINS - 1)
    for place in np.unique(places):
        chosen = differing[places == place]
        value = Value(measured=float(chosen.mean()), n=len(chosen), **about)  # type: ignore[arg-type]
        label = "share of differing tokens, by IoU of the masks"
        yield _point("similar", label, (place + 0.5) / BINS, series, "", value, "share")


def _rows(
    paper: str, figure: specs.Figure, series: specs.Series, number: Numbers, testsets: Iterable[str], reader: Reader
) -> dict[str, list[pa.Table]]:
    most = number.get((figure.protocol or "", series.method, series.variant), 1)
    return reader.run_rows(paper, figure.protocol or "", series.method, series.variant, most, testsets)


def _value(metric: str, figure: specs.Figure, rows: Mapping[str, list[pa.Table]], reader: Reader) -> Value:
    if not rows:
        return Value(note="no image of this kind")
    return tables.metric_value(metric, figure.protocol or "", rows, reader)


def _of_kind(rows: Mapping[str, list[pa.Table]], kind: str) -> dict[str, list[pa.Table]]:
    """The rows of one kind; sets without an image of it are left out, those that were not scored are kept."""
    found = {t: [table.filter(pc.equal(table["kind"], kind)) for table in per_seed] for t, per_seed in rows.items()}
    return {t: per_seed for t, per_seed in found.items() if not per_seed or per_seed[0].num_rows}


def _scored(table: pa.Table, signal: str) -> pa.Table:
    """Rows whose `score` is the signal; null where an image has none."""
    values = [dict(row or ()).get(signal) for row in table["signals"].to_pylist()]
    place = table.schema.get_field_index("score")
    return table.set_column(place, table.schema.field("score"), pa.array(values, type=table.schema.field("score").type))


def _point(
    panel: str, label: str, level: float, series: specs.Series, testset: str, value: Value, metric: str
) -> dict[str, Any]:
    return {
        "panel": panel,
        "panel_label": label,
        "level": level,
        "series": series.id,
        "series_label": series.label,
        "metric": metric,
        "testset": testset,
        "method": series.method,
        "variant": series.variant,
        **vars(tables.judged(value, None, None, metric)),
    }


def _words(kind: str) -> str:
    return kind.replace("_", "-")
