"""Drawings of a paper's figures from their points: curves with bands, grouped bars, profiles, scattered states."""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from unforge.report import curves, grids, strips

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEAN = "mean"
"""Of weights: the series that has a band, the others' would hide each other."""


def svg(data: pa.Table, *, kind: str, metric: str | None, salt: str) -> str:
    """The drawing of a figure: `data` as `unforge.figures` gives it; `kind` and `metric` as the figure's YAML has them;
    `salt` is unique in a page."""
    if kind == "curves":
        return curves.svg(data, metric=metric or "", salt=salt)
    rows = data.to_pylist()
    if kind == "samples":
        return strips.svg(rows)
    if kind == "attention":
        return grids.svg(rows)
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    with curves.drawing(salt) as make:
        wide = 3.7 * len(panels) if kind in ("dynamics", "states") and panels else 7.4
        figure = make(width=wide, height=3.6 if kind == "states" else 3.3)
        if kind in ("dynamics", "states"):
            draw = _dynamics if kind == "dynamics" else _states
            places = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
            for place, panel in zip(places, panels, strict=False):
                draw(place, [row for row in rows if row["panel"] == panel])
            handles, labels = places[0].get_legend_handles_labels()
            if handles:
                figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
        elif kind in ("weights", "quantiles"):
            place = figure.subplots()
            _lines(place, rows, [MEAN] if kind == "weights" else {row["series"] for row in rows})
            if kind == "weights":
                _weighed(place, rows, metric or "")
            else:
                _shares(place)
            place.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        elif kind == "by_type":
            _bars(figure.subplots(), rows, "panel", metric or "")
        elif kind == "signals_by_type":
            _bars(figure.subplots(), rows, "level", "intensity")
        else:
            left, right = figure.subplots(1, 2)
            _profile(left, [row for row in rows if row["panel"] == "usage"], "rank of the code", "share of the tokens")
            similar = [row for row in rows if row["panel"] == "similar"]
            _profile(right, similar, "IoU of two masks", "share of their tokens that differ")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return curves.inline(buffer.getvalue(), salt)


def _bars(place: Axes, rows: list[dict[str, Any]], along: str, label: str) -> None:
    """Groups of bars with intervals. Along `panel`: a group for each panel, a bar for each series; along `level`: a
    group for each level, a bar for each panel."""
    if along == "panel":
        groups = {row["panel"]: row["panel_label"] for row in rows}
        bars = {row["series"]: row["series_label"] for row in rows}
        found = {(row["panel"], row["series"]): row for row in rows}
    else:
        groups = {row["level"]: f"layer {row['level']:g}" for row in sorted(rows, key=lambda row: row["level"])}
        bars = {row["panel"]: row["panel_label"] for row in rows}
        found = {(row["level"], row["panel"]): row for row in rows}
    width = 0.8 / max(1, len(bars))
    for number, (bar, name) in enumerate(bars.items()):
        known = [(i, found[group, bar]) for i, group in enumerate(groups) if (group, bar) in found]
        known = [(i, row) for i, row in known if row["measured"] is not None]
        centres = [i - 0.4 + width * (number + 0.5) for i, _ in known]
        values = [row["measured"] for _, row in known]
        below = [
            max(0.0, row["measured"] - (row["measured"] if row["ci_low"] is None else row["ci_low"]))
            for _, row in known
        ]
        above = [
            max(0.0, (row["measured"] if row["ci_high"] is None else row["ci_high"]) - row["measured"])
            for _, row in known
        ]
        colour = curves.COLOURS[number % len(curves.COLOURS)]
        place.bar(centres, values, width * 0.92, color=colour, label=curves.plain(name))
        place.errorbar(centres, values, yerr=[below, above], fmt="none", ecolor="#333333", elinewidth=0.9, capsize=2)
    place.set_xticks(range(len(groups)), [curves.plain(name) for name in groups.values()])
    place.set_ylabel(curves.plain(label))
    place.set_ylim(bottom=0)
    place.grid(visible=True, axis="y", color="#e4e4e4", linewidth=0.6)
    place.set_axisbelow(True)
    place.spines[["top", "right"]].set_visible(False)
    if any(row["measured"] is not None for row in rows):
        place.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))


CLASSES = {"real": (0, "o"), "synthetic": (1, "s"), "tampered": (2, "^")}
"""Colour and marker of each class: told apart without colour too."""


def _dynamics(place: Axes, rows: list[dict[str, Any]]) -> None:
    """Accuracy of each class over the steps with its band; after training, a bar for each."""
    known = [row for row in rows if row["measured"] is not None]
    place.set_title(curves.plain(rows[0]["panel_label"]), fontsize=10)
    ended = rows[0]["panel"].endswith("_final")
    for name, (colour, marker) in CLASSES.items():
        line = [row for row in known if row["series"] == name]
        shade = curves.COLOURS[colour]
        if ended:
            for row in line:
                gap = [[row["measured"] - (row["ci_low"] or 0)], [(row["ci_high"] or 0) - row["measured"]]]
                place.bar([colour], [row["measured"]], 0.7, color=shade)
                if row["ci_low"] is not None and row["ci_high"] is not None:
                    place.errorbar([colour], [row["measured"]], yerr=gap, fmt="none", ecolor="#333333", capsize=2)
        elif line:
            steps = [row["level"] for row in line]
            lows, highs = [row["ci_low"] for row in line], [row["ci_high"] for row in line]
            place.fill_between(steps, lows, highs, color=shade, alpha=0.13, linewidth=0)
            values = [row["measured"] for row in line]
            place.plot(steps, values, color=shade, marker=marker, markersize=3.5, linewidth=1.3, label=name)
    if ended:
        place.set_xticks(range(len(CLASSES)), list(CLASSES))
    else:
        place.set_xlabel("training step")
    place.set_ylabel("share named rightly")
    place.set_ylim(-0.02, 1.02)
    place.grid(visible=True, axis="y", color="#e4e4e4", linewidth=0.6)
    place.set_axisbelow(True)
    place.spines[["top", "right"]].set_visible(False)


def _states(place: Axes, rows: list[dict[str, Any]]) -> None:
    """A point for each image, a marker for each class; the panel's number over it."""
    whole = [row for row in rows if row["key"] is None]
    title = curves.plain(rows[0]["panel_label"])
    for row in whole:
        if row["measured"] is not None:
            span = "" if row["ci_low"] is None else f" ({row['ci_low']:.2f} to {row['ci_high']:.2f})"
            title += f"\n{curves.plain(row['metric'])} {row['measured']:.2f}{span}, n {row['n']}"
    place.set_title(title, fontsize=10)
    for name, (colour, marker) in CLASSES.items():
        points = [(row["x"], row["y"]) for row in rows if row["key"] is not None and row["series"] == name]
        if points:
            across, up = zip(*points, strict=True)
            shade = curves.COLOURS[colour]
            place.plot(across, up, marker, color=shade, markersize=4.5, alpha=0.75, markeredgewidth=0, label=name)
    place.set_xticks([])
    place.set_yticks([])
    place.set_aspect("equal", "datalim")


def _lines(place: Axes, rows: list[dict[str, Any]], banded: Collection[str]) -> None:
    """A line for each series, over the levels, with its band where it is `banded`."""
    for number, (name, label) in enumerate({row["series"]: row["series_label"] for row in rows}.items()):
        line = [row for row in rows if row["series"] == name and row["measured"] is not None]
        colour, dashes = curves.COLOURS[number % len(curves.COLOURS)], curves.LINES[number % len(curves.LINES)]
        levels = [row["level"] for row in line]
        bounded = [row for row in line if row["ci_low"] is not None and row["ci_high"] is not None]
        bounded = bounded if name in banded else []
        lows, highs = [row["ci_low"] for row in bounded], [row["ci_high"] for row in bounded]
        where = [row["level"] for row in bounded]
        place.fill_between(where, lows, highs, color=colour, alpha=0.1, linewidth=0)
        marker = curves.MARKERS[number % len(curves.MARKERS)]
        values = [row["measured"] for row in line]
        look: Any = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4, "linewidth": 1.4}
        place.plot(levels, values, label=curves.plain(label), **look)
    place.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    place.spines[["top", "right"]].set_visible(False)


def _weighed(place: Axes, rows: list[dict[str, Any]], metric: str) -> None:
    """Levels lie apart as numbers do on a logarithmic scale, and 0 at its foot."""
    levels = sorted({row["level"] for row in rows})
    least = min([level for level in levels if level > 0], default=1.0)
    place.set_xscale("symlog", linthresh=least, linscale=0.5)
    place.set_xticks(levels, [f"{level:g}" for level in levels])
    place.minorticks_off()
    place.set_xlim(left=-0.1 * least)
    place.set_xlabel(curves.plain(rows[0]["panel_label"]))
    place.set_ylabel(curves.plain(metric))


def _shares(place: Axes) -> None:
    place.axhline(1.0, color="#777777", linewidth=1, linestyle=(0, (1, 2)), label="even attention")
    place.set_yscale("log")
    place.set_xlabel("share of the patches, from the least attended")
    place.set_ylabel("attention, 1 is even")


def _profile(place: Axes, rows: list[dict[str, Any]], along: str, label: str) -> None:
    known = [row for row in rows if row["measured"] is not None]
    levels, values = [row["level"] for row in known], [row["measured"] for row in known]
    place.plot(levels, values, color=curves.COLOURS[0], marker="o", markersize=2.5, linewidth=1.2)
    place.set_xlabel(along)
    place.set_ylabel(label)
    place.set_ylim(bottom=0)
    place.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    place.spines[["top", "right"]].set_visible(False)
