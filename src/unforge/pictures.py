"""Points of the figures that are no metric of test images alone: training dynamics, states in a plane, single images.

From training logs, score files and kept samples. Needs no model.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from unforge import plane, seeds, specs, tables
from unforge.metrics.class_acc import CLASSES, truth
from unforge.metrics.definition import Columns
from unforge.metrics.entanglement import states
from unforge.tables import Reader, Value

BINS = 10
"""Stretches of a training run in which rightly named images are gathered."""
MOST = 600
"""Images whose states are shown, of each run."""
SIDE = 160
"""Longer side of a picture that is kept, pixels."""
PARTS = {
    "image": "image",
    "attention": "error map",
    "prediction": "predicted mask",
    "mask": "true mask",
    "text": "what it wrote",
}
"""What a figure of samples may show, and the words over it."""

STATE_COLUMNS = (pa.field("key", pa.string()), pa.field("x", pa.float64()), pa.field("y", pa.float64()))
"""Of a figure of states: image and place. A row without a key is the metric of a whole panel."""
SAMPLE_COLUMNS = (pa.field("key", pa.string()), pa.field("picture", pa.binary()), pa.field("text", pa.string()))
"""Of a figure of samples: image; what is shown of it (see `picture`); text."""

Points = Iterator[dict[str, Any]]


def dynamics(paper: str, figure: specs.Figure, number: Mapping[Any, int], reader: Reader) -> Points:
    """Share of the training images of each class that were named rightly, over the steps of each series' first run;
    with test sets, its accuracy on them after training, the mean over the sets."""
    for series in figure.series:
        name = specs.run_name(paper, figure.protocol or "", series.method, series.variant, 0)
        log = reader.log(name)
        about = {"scale": reader.profile.model, "n_seeds": 1, "status": "not_comparable"}
        for one in CLASSES:
            found = [] if log is None else shares(log, one)
            for step, right, seen in found:
                low, high = wilson(right, seen)
                value = Value(measured=right / seen, ci_low=low, ci_high=high, n=round(seen), **about)  # type: ignore[arg-type]
                yield _of(series, one, float(step), "train", value, f"class_acc@{one}")
            if not found:
                note = f"{name} was not trained" if log is None else f"{name} logged no image of the class {one}"
                yield _of(series, one, 0.0, "train", Value(note=note), f"class_acc@{one}")
        for one in CLASSES if figure.testsets else ():
            rows = _rows(paper, figure, series, number, reader)
            value = tables.metric_value(f"class_acc@{one}", figure.protocol or "", rows, reader)
            point = _of(series, one, 0.0, "+".join(figure.testsets), value, f"class_acc@{one}")
            yield point | {"panel": f"{series.id}_final", "panel_label": f"{series.label}, trained, on test images"}


def shares(log: pa.Table, name: str) -> list[tuple[int, float, float]]:
    """(last step, images rightly named, images) of a class in each of up to `BINS` stretches of a training log.

    The log has means over the steps since its last point of `seen_<name>` and `right_<name>`, images per step.
    """
    points: dict[int, dict[str, float]] = {}
    for row in log.to_pylist():
        points.setdefault(row["step"], {})[row["name"]] = row["value"]
    kept = {step: point for step, point in sorted(points.items()) if f"seen_{name}" in point}
    last, before = max(kept, default=0), 0
    gathered: dict[int, tuple[int, float, float]] = {}
    for step, point in kept.items():
        place = min(BINS - 1, (step - 1) * BINS // last)
        _, right, seen = gathered.get(place, (0, 0.0, 0.0))
        steps = step - before
        gathered[place] = (step, right + steps * point[f"right_{name}"], seen + steps * point[f"seen_{name}"])
        before = step
    return [found for _, found in sorted(gathered.items()) if found[2] > 0]


def wilson(right: float, seen: float) -> tuple[float, float]:
    """95 % interval of a share of independent trials (Wilson, 1927)."""
    z = 1.959963984540054
    share, spread = right / seen, z * z / seen
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(max(0.0, share * (1 - share)) / seen + spread / (4 * seen)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def states_in_a_plane(paper: str, figure: specs.Figure, number: Mapping[Any, int], reader: Reader) -> Points:
    """The metric of each series, and where the states of its first run's images lie in a plane (t-SNE)."""
    for series in figure.series:
        rows = _rows(paper, figure, series, number, reader)
        value = tables.metric_value(figure.metric or "", figure.protocol or "", rows, reader)
        yield _of(series, "", 0.0, "+".join(figure.testsets), value, figure.metric or "") | {"panel": series.id}
        first = [per_seed[0] for per_seed in rows.values() if per_seed]
        if not first:
            continue
        columns = Columns.of(pa.concat_tables(first).combine_chunks())
        points, true = states(columns), truth(columns)
        there = np.flatnonzero(~np.isnan(points).any(axis=1)) if points.shape[1] else np.empty(0, dtype=np.intp)
        there = np.asarray(
            sorted(there, key=lambda i: seeds.integer(0, columns.key[i], "figure"))[:MOST], dtype=np.intp
        )
        if len(there) < 4:
            continue
        there = np.sort(there)
        # few images at a perplexity near their number are drawn as dots
        places = plane.tsne(points[there], min(plane.PERPLEXITY, max(2.0, len(there) / 8))).round(4)
        shown = Value(status=value.status, scale=value.scale, data=value.data, pretraining=value.pretraining)
        for i, (x, y) in zip(there, places, strict=True):
            point = _of(series, CLASSES[true[i]], 0.0, "+".join(figure.testsets), shown, figure.metric or "")
            yield point | {"panel": series.id, "key": columns.key[i], "x": float(x), "y": float(y)}


def samples(paper: str, figure: specs.Figure, number: Mapping[Any, int], reader: Reader) -> Points:
    """Images of each series' first run and what it says of them, tampered ones first, by a hash of their key.

    A real set that may not be passed on is left out, of such a stand-in the photographs: masks are unforge's own.
    """
    for series in figure.series:
        name = specs.run_name(paper, figure.protocol or "", series.method, series.variant, 0)
        kept = reader.samples(name)
        about = {"scale": reader.profile.model, "status": "not_comparable"}
        rows = [] if kept is None else [row for row in kept.to_pylist() if _shown(row, figure)]
        rows.sort(key=lambda row: (row["kind"] == "generated", seeds.integer(0, row["key"], "figure"), row["key"]))
        for place, row in enumerate(rows[: figure.images]):
            for part in figure.shows:
                f1 = row["f1"] if part == "prediction" else None
                value = Value(measured=f1, n=1, data=row["data"], **about)  # type: ignore[arg-type]
                point = _of(series, part, float(place), row["testset"], value, "pixel_f1@0.5")
                point |= {"panel": series.id, "series_label": _words(part, row), "key": row["key"]}
                yield point | {"picture": picture(part, row), "text": row["text"] if part == "text" else None}
        if not rows:
            note = f"{name} was not evaluated" if kept is None else f"{name} kept no image that may be shown"
            yield _of(series, "", 0.0, "+".join(figure.testsets), Value(note=note), "pixel_f1@0.5") | {
                "panel": series.id
            }


def attention(paper: str, figure: specs.Figure, number: Mapping[Any, int], reader: Reader) -> Points:
    """Where the first run of each series looks in the same frames, real or fake, by a hash of their key.

    `measured`: the largest weight, 1 where attention is even. A real set that may not be passed on is left out.
    """
    kept = reader.attention(paper)
    rows = [] if kept is None else [row for row in kept.to_pylist() if _shown(row, figure)]
    found = {(row["testset"], row["key"], row["run"], row["extra"]): row for row in rows}
    about = {"scale": reader.profile.model, "status": "not_comparable", "n": 1}
    for label, frames in enumerate(("real", "fake")):
        if frames not in figure.frames:
            continue
        of_label = [row for row in rows if row["run"] == "" and row["label"] == label]
        of_label.sort(key=lambda row: (seeds.integer(0, row["key"], "figure"), row["key"]))
        for place, row in enumerate(of_label[: figure.images]):
            value = Value(data=row["data"], **about)  # type: ignore[arg-type]
            shown = _of(figure.series[0], "image", float(place), row["testset"], value, "attention")
            here = {"panel": frames, "panel_label": f"{frames} frames", "key": row["key"], "text": None}
            left_out = " (left out)" if row["image"] is None else ""
            yield shown | here | {"picture": picture("image", row), "series_label": f"image{left_out}"}
            for series in figure.series:
                run = specs.run_name(paper, figure.protocol or "", series.method, series.variant, 0)
                seen = found.get((row["testset"], row["key"], run, series.extra))
                weights = None if seen is None else np.asarray(seen["weights"]).reshape(seen["side"], -1)
                value = Value(note=f"{run} was not shown this frame")
                if weights is not None:
                    most = float(weights.max() / max(weights.mean(), 1e-12))
                    value = Value(measured=most, data=row["data"], **about)  # type: ignore[arg-type]
                point = _of(series, series.id, float(place), row["testset"], value, "attention") | here
                yield point | {"series_label": series.label, "picture": None if weights is None else grey(weights)}
        if not of_label:
            note = "no frame was looked at" if kept is None else "no frame that may be shown"
            point = _of(figure.series[0], "", 0.0, "+".join(figure.testsets), Value(note=note), "attention")
            yield point | {"panel": frames, "panel_label": f"{frames} frames"}


def grey(weights: np.ndarray) -> bytes:
    """Weights (h,w) of 0 or more as a grey PNG, white the largest."""
    shown = np.rint(255 * weights / max(float(weights.max()), 1e-12)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shown).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def picture(part: str, row: Mapping[str, Any]) -> bytes | None:
    """A part of a kept sample, at most `SIDE` pixels: a JPEG of the image, a grey PNG of a map; None where there is
    none, or it may not be passed on. Equal pixels, equal bytes."""
    if part == "text" or row[part] is None or (part == "image" and not row["redistribute"]):
        return None
    with Image.open(io.BytesIO(row[part])) as opened:
        shown = opened.convert("RGB" if part == "image" else "L")
    factor = SIDE / max(shown.size)
    if factor < 1:
        size = (max(1, round(shown.width * factor)), max(1, round(shown.height * factor)))
        shown = shown.resize(size, Image.Resampling.NEAREST if part == "mask" else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if part == "image":
        shown.save(buffer, format="JPEG", quality=80, optimize=True)
    else:
        shown.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _shown(row: Mapping[str, Any], figure: specs.Figure) -> bool:
    return row["testset"] in figure.testsets and (row["redistribute"] or row["data"] == "stand_in")


def _words(part: str, row: Mapping[str, Any]) -> str:
    missing = part != "text" and picture(part, row) is None
    return PARTS[part] + (" (left out)" if missing and part == "image" else " (none)" if missing else "")


def _rows(
    paper: str, figure: specs.Figure, series: specs.Series, number: Mapping[Any, int], reader: Reader
) -> dict[str, list[pa.Table]]:
    most = number.get((figure.protocol or "", series.method, series.variant), 1)
    return reader.run_rows(paper, figure.protocol or "", series.method, series.variant, most, figure.testsets)


def _of(series: specs.Series, name: str, level: float, testset: str, value: Value, metric: str) -> dict[str, Any]:
    """A point whose panel is the series and whose series is `name` (a class, a part)."""
    return {
        "panel": series.id,
        "panel_label": series.label,
        "level": level,
        "series": name,
        "series_label": name,
        "metric": metric,
        "testset": testset,
        "method": series.method,
        "variant": series.variant,
        **vars(tables.judged(value, None, None, metric)),
    }
