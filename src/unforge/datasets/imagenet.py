"""ImageNet photographs (ILSVRC 2012, validation): real images that no generator made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unforge.datasets import layout
from unforge.types import Card, Found, Views

VERSION = "1"

CARD = Card(
    name="ImageNet (ILSVRC 2012 validation)",
    images={"authentic": 50000},
    licence="research use, on request; photographs under their owners' terms",
    redistribute=False,
    source="Russakovsky et al.: ImageNet Large Scale Visual Recognition Challenge, IJCV 2015; image-net.org.",
    layout="ILSVRC2012_val_00000001.JPEG, ..., in one folder or in folders by class (labels are not used)",
    defects=("a few files are PNG or CMYK under the name of a JPEG: decoded by their content, flagged",),
)

STAND_IN = Views(splits={"val": "val", "test": "test"}, quality=(85, 96))
"""Views of photographs that nothing was trained on. The three pools differ in their JPEG quality alone: here about
that of the photographs ImageNet was collected from."""


def find(root: Path) -> Iterator[Found]:
    """The photographs, all authentic; `val` (calibration) or `test` by the hash of the file's name."""
    for path in layout.files(root):
        if layout.is_image(path):
            yield layout.held_out(layout.authentic(root, path, source=(f"imagenet:{layout.stem(path)}",)), "imagenet")
