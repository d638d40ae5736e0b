"""Single images with what a run says of them, as one SVG: a row for each image, a column for each part.

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

SIDE, GAP, LINE = 160, 10, 15
"""Longer side of a picture, space around it, height of a line of text (pixels)."""
CHARACTERS, TEXT = 46, 300
"""Characters in a line of what a method wrote, and the width of its column (pixels)."""
HEAD, TITLE = 18, 26


def svg(rows: Iterable[Mapping[str, Any]]) -> str:
    """The drawing of a figure of samples (`unforge.pictures.samples`)."""
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        panels.setdefault(row["panel"], []).append(row)
    parts: list[str] = []
    top, wide = 0, SIDE
    for of_panel in panels.values():
        drawn, height, width = _panel(of_panel, top)
        parts += drawn
        top, wide = top + height, max(wide, width)
    style = 'font-family="DejaVu Sans, sans-serif" font-size="11" fill="#222222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{top}" viewBox="0 0 {wide} {top}" {style}>'
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _panel(rows: list[Mapping[str, Any]], top: int) -> tuple[list[str], int, int]:
    """Elements of one run, its height and its width."""
    parts = [_text(GAP, top + 17, str(rows[0]["panel_label"]), bold=True)]
    names = list(dict.fromkeys(row["series"] for row in rows if row["series"]))
    if not names:
        return [*parts, _text(GAP, top + TITLE + 12, "nothing to show")], TITLE + 2 * LINE, 2 * SIDE
    widths = [TEXT if name == "text" else SIDE for name in names]
    lefts = [GAP + sum(widths[:i]) + i * GAP for i in range(len(names))]
    below = top + TITLE
    for number in sorted({row["level"] for row in rows}):
        strip = {row["series"]: row for row in rows if row["level"] == number}
        tallest = SIDE
        for name, left in zip(names, lefts, strict=True):
            row = strip[name]
            caption = row["series_label"] + ("" if row["measured"] is None else f", F1 {row['measured']:.2f}")
            parts.append(_text(left, below + 12, caption, faint=True))
            if name == "text":
                lines = textwrap.wrap(row["text"] or "(nothing)", CHARACTERS) or [""]
                parts += [_text(left, below + HEAD + 12 + LINE * i, line) for i, line in enumerate(lines)]
                tallest = max(tallest, LINE * len(lines))
            else:
                parts.append(_picture(row, name, left, below + HEAD))
        key = next(iter(strip.values()))["key"]
        parts.append(_text(GAP, below + HEAD + tallest + 12, str(key), faint=True))
        below += HEAD + tallest + LINE + GAP
    return parts, below - top, lefts[-1] + widths[-1] + GAP


def _picture(row: Mapping[str, Any], name: str, left: int, top: int) -> str:
    if row["picture"] is None:
        return f'<rect x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" fill="#f2f2f2"/>'
    with Image.open(io.BytesIO(row["picture"])) as opened:
        shown = np.asarray(opened.convert("RGB" if name == "image" else "L"))
    if name == "attention":
        high, wide = (round(SIDE * side / max(shown.shape)) for side in shown.shape)
        shown = overlays.heat(np.zeros((high, wide, 3), dtype=np.uint8), shown / 255.0, opacity=1.0)
    factor = SIDE / max(shown.shape[:2])
    high, wide = (max(1, round(side * factor)) for side in shown.shape[:2])
    uri = overlays.png_uri(shown) if name == "mask" else overlays.jpeg_uri(shown)
    label = quoteattr(f"{row['series_label']} of {row['key']}")
    place = f'x="{left}" y="{top}" width="{wide}" height="{high}"'
    return f'<image {place} role="img" aria-label={label} href="{uri}"/>'


def _text(left: int, base: int, text: str, *, bold: bool = False, faint: bool = False) -> str:
    style = ' font-weight="bold" font-size="13"' if bold else ' fill="#666666" font-size="10"' if faint else ""
    return f'<text x="{left}" y="{base}"{style}>{escape(_printable(text))}</text>'


def _printable(text: str) -> str:
    """Without characters that XML forbids: what a method wrote may hold any."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
