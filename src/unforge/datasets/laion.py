"""LAION-POP photographs: real images from the web."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unforge.datasets import layout
from unforge.types import Card, Found, Views

VERSION = "1"

CARD = Card(
    name="LAION-POP (a subset)",
    images={},
    licence="links under CC-BY-4.0; each photograph under its owner's terms",
    redistribute=False,
    source="LAION-POP, laion.ai. ASSUMPTION(paper): iar_provenance says LAION; its released code names LAION-POP, and "
    "not which 1,000 images.",
    layout="images in one folder, or in the folders a downloader made (00000/000000000.jpg); other files are ignored",
)

STAND_IN = Views(splits={"val": "val", "test": "test"}, quality=(72, 92))
"""Views of photographs that nothing was trained on. The three pools differ in their JPEG quality alone: here that of
pictures saved for the web."""


def find(root: Path) -> Iterator[Found]:
    """The photographs, all authentic; `val` (calibration) or `test` by the hash of the file's name."""
    for path in layout.files(root):
        if layout.is_image(path):
            yield layout.held_out(layout.authentic(root, path, source=(f"laion:{layout.stem(path)}",)), "laion")
