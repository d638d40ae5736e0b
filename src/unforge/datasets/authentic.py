"""Authentic photographs and nothing else: what a detector says of them is a false alarm, more so once degraded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from unforge.datasets import layout
from unforge.types import Card, Found, StandIn

VERSION = "1"

CARD = Card(
    name="authentic photographs",
    images={},
    licence="that of the photographs you add",
    redistribute=False,
    source="yours: photographs that nobody edited and no method was trained on; no paper names such a set",
    layout="images in any folders; other files are ignored",
)

STAND_IN = StandIn(kinds={"authentic": 1.0}, split="test", extension="jpg", quality=(86, 98))
"""Photographs as SID-Set's and OpenSDID's stand-ins have them, none of them forged."""


def find(root: Path) -> Iterator[Found]:
    """Every image, authentic and of split test; each is its own photograph."""
    for path in layout.files(root):
        if layout.is_image(path):
            name = layout.printable(PurePosixPath(path).with_suffix("").as_posix())
            yield layout.authentic(root, path, source=(f"authentic:{name}",))
