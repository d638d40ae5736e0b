"""Drawings of a paper's figures, each kind from its points: curves with bands, grouped bars, profiles of a codebook."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from unforge.report import curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def svg(data: pa.Table, *, kind: str, metric: str | None, salt: str) -> str:
    """The drawing of a figure: `data` as `unforge.figures` gives it; `kind` and `metric` as the figure's YAML has them;
    `salt` is unique in a page."""
    if kind == "curves":
        return curves.svg(data, metric=metric or "", salt=salt)
    rows = data.to_pylist()
    with curves.drawing(salt) as make:
        figure = make(width=7.4, height=3.3)
        if kind == "by_type":
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


def _profile(place: Axes, rows: list[dict[str, Any]], along: str, label: str) -> None:
    known = [row for row in rows if row["measured"] is not None]
    levels, values = [row["level"] for row in known], [row["measured"] for row in known]
    place.plot(levels, values, color=curves.COLOURS[0], marker="o", markersize=2.5, linewidth=1.2)
    place.set_xlabel(along)
    place.set_ylabel(label)
    place.set_ylim(bottom=0)
    place.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    place.spines[["top", "right"]].set_visible(False)
