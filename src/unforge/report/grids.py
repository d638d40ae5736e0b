"""Where runs look, as one SVG: a row for each frame, a column for the image and for each run's map.

Equal points give equal bytes: the pictures are those of the points, and text stays text in a generic family.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from PIL import Image

from unforge.report import overlays

SIDE, GAP, LINE = 96, 8, 13
"""Side of a picture, space around it, height of a line of text (pixels)."""
CHARACTERS = 17
"""Of a line over a column."""
TITLE = 24


def svg(rows: Iterable[Mapping[str, Any]]) -> str:
    """The drawing of a figure of attention (`unforge.pictures.attention`): real frames above fake ones."""
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        panels.setdefault(row["panel"], []).append(row)
    parts: list[str] = []
    top, wide = 0, 3 * SIDE
    for of_panel in panels.values():
        drawn, height, width = _panel(of_panel, top)
        parts += drawn
        top, wide = top + height, max(wide, width)
    style = 'font-family="DejaVu Sans, sans-serif" font-size="10" fill="#222222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{top}" viewBox="0 0 {wide} {top}" {style}>'
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _panel(rows: list[Mapping[str, Any]], top: int) -> tuple[list[str], int, int]:
    """Elements of the real or of the fake frames, their height and their width."""
    parts = [_text(GAP, top + 16, str(rows[0]["panel_label"]), bold=True)]
    columns = {row["series"]: row["series_label"] for row in rows if row["series"]}
    if not columns:
        return [*parts, _text(GAP, top + TITLE + 12, "nothing to show")], TITLE + 2 * LINE, 2 * SIDE
    heads = {name: textwrap.wrap(label, CHARACTERS) for name, label in columns.items()}
    lefts = {name: GAP + i * (SIDE + GAP) for i, name in enumerate(columns)}
    below = top + TITLE
    for name, lines in heads.items():
        parts += [_text(lefts[name], below + LINE * (i + 1) - 3, line) for i, line in enumerate(lines)]
    below += LINE * max(map(len, heads.values())) + GAP // 2
    for number in sorted({row["level"] for row in rows}):
        for row in (row for row in rows if row["level"] == number):
            left = lefts[row["series"]]
            said = str(row["key"])[-16:] if row["series"] == "image" else ""
            said = f"at most {row['measured']:.2f}" if row["measured"] is not None else said
            parts += [_picture(row, left, below), _text(left, below + SIDE + 10, said, faint=True)]
        below += SIDE + LINE + GAP
    return parts, below - top, max(lefts.values()) + SIDE + GAP


def _picture(row: Mapping[str, Any], left: int, top: int) -> str:
    if row["picture"] is None:
        return f'<rect x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" fill="#f2f2f2"/>'
    with Image.open(io.BytesIO(row["picture"])) as opened:
        shown = np.asarray(opened.convert("RGB" if row["series"] == "image" else "L"))
    if row["series"] != "image":
        high, wide = (round(SIDE * side / max(shown.shape)) for side in shown.shape)
        shown = overlays.heat(np.zeros((high, wide, 3), dtype=np.uint8), shown / 255.0, opacity=1.0)
    factor = SIDE / max(shown.shape[:2])
    high, wide = (max(1, round(side * factor)) for side in shown.shape[:2])
    label = quoteattr(f"{row['series_label']}: {row['key']}")
    place = f'x="{left}" y="{top}" width="{wide}" height="{high}"'
    return f'<image {place} role="img" aria-label={label} href="{overlays.jpeg_uri(shown)}"/>'


def _text(left: int, base: int, text: str, *, bold: bool = False, faint: bool = False) -> str:
    style = ' font-weight="bold" font-size="13"' if bold else ' fill="#666666" font-size="9"' if faint else ""
    return f'<text x="{left}" y="{base}"{style}>{escape(text)}</text>'
