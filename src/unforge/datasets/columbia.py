"""Columbia Uncompressed Image Splicing Detection Evaluation Dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unforge.datasets import layout
from unforge.types import Card, Found, StandIn

if TYPE_CHECKING:
    import numpy as np

VERSION = "1"

CARD = Card(
    name="Columbia uncompressed",
    images={"authentic": 183, "splice": 180},
    licence="research use, on request",
    redistribute=False,
    source="Hsu, Chang: Detecting image splicing using geometry invariants and camera characteristics consistency, "
    "ICME 2006; Columbia University, DVMM laboratory.",
    layout="4cam_splc/*.{tif,bmp}, 4cam_splc/edgemask/<name>_edgemask.jpg, 4cam_auth/*.{tif,bmp}",
    defects=(
        "masks are colour-coded JPEG: bright and dark green (the second camera) is what was spliced in, bright and "
        "dark red the rest; binarised by G > R, which JPEG noise does not reach",
        "which authentic images a splice was made from is not recorded: each image is its own source",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 0.3, "splice": 0.7},
    split="test",
    extension="tif",
    feather=(0.0, 0.0),
    area=(0.15, 0.4),
    donors="polygon",
)


def read_mask(data: bytes) -> np.ndarray:
    """(H, W) bool: where the edge mask is green rather than red. ValueError when it cannot be decoded."""
    pixels = layout.pixels(data)
    return pixels[..., 1] > pixels[..., 0]


def find(root: Path) -> Iterator[Found]:
    """Rows of the official layout, also with its folders nested twice (4cam_splc/4cam_splc)."""
    listing = [path for path in layout.files(root) if layout.is_image(path)]
    masks = [
        path for path in listing if layout.stem(path).lower().endswith("_edgemask") and "4cam_auth" not in path.lower()
    ]
    images = [path for path in listing if layout.folder(path) in ("4cam_splc", "4cam_auth")]
    spliced = [
        path for path in images if layout.folder(path) == "4cam_splc" and not path.lower().endswith("_edgemask.jpg")
    ]
    paired = layout.pair(spliced, masks, (("name", lambda path: layout.mask_stem(path).lower()),))
    for path in spliced:
        mask, _ = paired.get(path, (None, ""))
        yield layout.tampered(root, path, mask, source=(f"columbia:{layout.stem(path)}",), kind="splice")
    for path in images:
        if layout.folder(path) == "4cam_auth":
            yield layout.authentic(root, path, source=(f"columbia:{layout.stem(path)}",))
