"""CocoGlide: COCO photographs with one object painted anew by GLIDE; the column "Glide" of TamperTok's tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from unforge.datasets import layout
from unforge.types import Card, Found, StandIn

VERSION = "1"

CARD = Card(
    name="CocoGlide",
    images={"authentic": 512, "regenerated": 512},
    licence="research use; the photographs under COCO's terms (Flickr)",
    redistribute=False,
    source="Guillaro et al.: TruFor, CVPR 2023; GRIP-UNINA (CocoGlide.zip).",
    layout="unverified: fake/<name>.png, mask/<name>.png (white is generated), real/<name>.png, 256x256; endings such "
    "as <name>_mask.png are taken too",
    defects=(
        "made of COCO val2017: images share their source with every COCO set here, which keeps them out of training",
        "a real photograph that two fakes were made from is there twice: the first is kept",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 0.3, "regenerated": 0.7},
    split="test",
    extension="png",
    feather=(0.0, 1.0),
    area=(0.03, 0.35),
)


def find(root: Path) -> Iterator[Found]:
    """Rows of the folders `fake`, `mask` and `real`; a fake and its photograph have the same source."""
    listing = [path for path in layout.files(root) if layout.is_image(path)]
    fakes = [path for path in listing if layout.folder(path) == "fake"]
    masks = [path for path in listing if layout.folder(path) in ("mask", "masks")]
    paired = layout.pair(fakes, masks, RULES)
    for path in fakes:
        mask, _ = paired.get(path, (None, ""))
        yield layout.tampered(root, path, mask, source=(_source(path),), kind="regenerated")
    for path in listing:
        if layout.folder(path) == "real":
            yield layout.authentic(root, path, source=(_source(path),), name=f"real_{layout.stem(path)}")


def _source(path: str) -> str:
    """The COCO photograph: its number stands after `val2017_`, with or without the leading zeros."""
    name = layout.stem(path)
    number = re.search(r"(?:val2017|val2014|COCO)_0*(\d+)", name) or re.search(r"(?<!\d)(\d{12})(?!\d)", name)
    return f"coco:{int(number[1]):012d}" if number else f"cocoglide:{name}"


def _place(path: str) -> str:
    return PurePosixPath(path).parent.parent.as_posix()


RULES: tuple[layout.Rule, ...] = (
    ("name", lambda path: (_place(path), layout.stem(path))),
    ("stem", lambda path: (_place(path), layout.mask_stem(path))),
)
