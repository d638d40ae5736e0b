"""COVERAGE: copy-move forgery with similar but genuine objects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from unforge.datasets import layout
from unforge.types import Card, Found, StandIn

VERSION = "1"

CARD = Card(
    name="COVERAGE",
    images={"authentic": 100, "copy_move": 100},
    licence="research use; no licence text",
    redistribute=False,
    source="Wen et al.: COVERAGE, ICIP 2016; GitHub wenbihan/coverage.",
    layout="image/<n>.tif (original), image/<n>t.tif (tampered), mask/<n>forged.tif (also <n>copy.tif, <n>paste.tif)",
    defects=(
        "the masks of 9 images (41, 48, 55 to 59, 61, 95) have another size than the image: rejected",
        "three masks per image: only `forged` marks what was pasted, the others are left aside",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 0.3, "copy_move": 0.7},
    split="test",
    extension="tif",
    feather=(0.0, 1.5),
    area=(0.03, 0.2),
    donors="polygon",
)


def find(root: Path) -> Iterator[Found]:
    """Rows of the official layout; PNG and JPEG mirrors with the same names are taken too."""
    listing = [path for path in layout.files(root) if layout.is_image(path)]
    masks = {match[1]: path for path in listing if (match := re.fullmatch(r"(\d+)forged", layout.stem(path)))}
    for path in listing:
        match = re.fullmatch(r"(\d+)(t?)", layout.stem(path))
        if not match or "mask" in layout.folder(path):
            continue
        source = (f"coverage:{match[1]}",)
        if match[2]:
            yield layout.tampered(root, path, masks.get(match[1]), source=source, kind="copy_move")
        else:
            yield layout.authentic(root, path, source=source)
