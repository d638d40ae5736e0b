"""Robustness curves as SVG, from a figure's Parquet: one panel per perturbation, one line per series.

Equal data gives equal bytes: matplotlib's ids are salted, no date is written, and text stays text in a generic
family, so that no font of the machine gets in.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")


def svg(data: pa.Table, *, metric: str, salt: str) -> str:
    """One row of panels with a line, markers and the interval's band for each series.

    `data` has the columns panel, level, series, measured, ci_low, ci_high, and may have panel_label,
    series_label and baseline_all; rows whose `measured` or `level` is null are left out. `metric` names the
    vertical axis, [0,1]; `salt` is unique in a page that shows several figures. Levels run as the rows do, so a
    quality that falls from 100 runs to the right.
    """
    everything = data.to_pylist()
    rows = [row for row in everything if row["measured"] is not None and row["level"] is not None]
    panels = {row["panel"]: row.get("panel_label") or row["panel"] for row in everything}
    series = {row["series"]: row.get("series_label") or row["series"] for row in everything}
    with drawing(salt) as make:
        wide = max(1, len(panels))
        figure = make(width=3.3 * wide, height=3.1 + 0.16 * ((len(series) + 2) // 3))
        axes = figure.subplots(1, wide, squeeze=False, sharey=True)[0]
        for place, (panel, label) in zip(axes, panels.items(), strict=False):
            place.set_title(plain(label), fontsize=10)
            _panel(place, [row for row in rows if row["panel"] == panel], series)
        axes[0].set_ylabel(plain(metric))
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(handles)), frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return inline(buffer.getvalue(), salt)


@contextmanager
def drawing(salt: str) -> Iterator[Callable[..., Figure]]:
    """A maker of empty figures of some width and height (inches), under settings that give equal bytes on every
    machine."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"], "font.size": 9}
    with matplotlib.rc_context(settings):
        yield lambda width, height: Figure(figsize=(width, height), layout="constrained")


def _panel(place: Axes, rows: list[dict[str, Any]], series: dict[str, str]) -> None:
    for number, (name, label) in enumerate(series.items()):
        line = [row for row in rows if row["series"] == name]
        levels = [float(row["level"]) for row in line]
        colour = COLOURS[number % len(COLOURS)]
        bounded = [row for row in line if row["ci_low"] is not None and row["ci_high"] is not None]
        if bounded:
            lows, highs = [row["ci_low"] for row in bounded], [row["ci_high"] for row in bounded]
            place.fill_between(
                [float(row["level"]) for row in bounded], lows, highs, color=colour, alpha=0.15, linewidth=0
            )
        place.plot(
            levels,
            [row["measured"] for row in line],
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            linestyle=LINES[number % len(LINES)],
            markersize=4,
            linewidth=1.4,
            label=plain(label),
        )
    base = {float(row["level"]): row["baseline_all"] for row in rows if row.get("baseline_all") is not None}
    if base:
        place.plot(
            list(base),
            list(base.values()),
            color="#777777",
            linewidth=1,
            linestyle=(0, (1, 2)),
            label="all manipulated",
        )
    ticks = list(dict.fromkeys(float(row["level"]) for row in rows))
    if ticks:
        place.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        if ticks[0] > ticks[-1]:
            place.invert_xaxis()
    place.set_ylim(-0.02, 1.02)
    place.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    place.spines[["top", "right"]].set_visible(False)


def plain(text: str) -> str:
    """`text` with nothing that matplotlib would read as mathematics, nor as "no legend entry"."""
    return text.replace("$", r"\$").removeprefix("_")


def inline(text: str, salt: str) -> str:
    """The `<svg>` element alone, for a page: no prologue, metadata or comments, and ids that start with `salt`."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    named = re.sub(r"<[^>]*>", lambda tag: re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{salt}-", tag[0]), text)
    return named.strip() + "\n"
