"""tampCOCO: CAT-Net's synthetic training set on COCO, in four parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from unforge.datasets import layout
from unforge.types import Card, Found, Kind, StandIn

if TYPE_CHECKING:
    import numpy as np

VERSION = "1"
PARTS: dict[str, Kind] = {"bcm": "copy_move", "bcmc": "copy_move", "cm": "copy_move", "sp": "splice"}
"""Copy-move of blobs (bcm), the same compressed again (bcmc), copy-move (cm), splice (sp)."""

CARD = Card(
    name="tampCOCO",
    images={"splice": 200000, "copy_move": 598872},
    licence="CC-BY-4.0; the photographs under COCO's terms (Flickr)",
    redistribute=False,
    source="Kwon et al.: Learning JPEG compression artifacts (CAT-Net v2), IJCV 2022; GitHub mjkwon2021/CAT-Net, "
    "Kaggle qsii24/tampcoco.",
    layout="{cm,sp,bcm,bcmc}_images/, {cm,sp,bcm,bcmc}_masks/ and a list per part (*{cm,sp,bcm,bcmc}*list*.txt, a line "
    "`image,mask`); without a list images and masks pair by name",
    defects=(
        "the lists repeat rows (cm: 199,999 rows, 199,429 files): each file is taken once",
        "mask values other than 0 and 1 occur: everything above 0 is manipulated",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 0.2, "splice": 0.4, "copy_move": 0.4},
    split="train",
    extension="jpg",
    quality=(86, 98),
    feather=(0.0, 1.0),
    area=(0.02, 0.25),
    donors="polygon",
)


def read_mask(data: bytes) -> np.ndarray:
    """(H, W) bool: everything above 0. ValueError when it cannot be decoded."""
    return layout.grey(data) > 0


def find(root: Path) -> Iterator[Found]:
    """Rows of the lists where there are some, else by name; `meta["part"]` is cm, sp, bcm or bcmc."""
    listing = layout.files(root)
    present = set(listing)
    rows = []
    for part in sorted(PARTS):
        lists = [path for path in listing if re.search(rf"(?i)(^|[/_]){part}_[^/]*list[^/]*\.txt$", path)]
        pairs = _listed(root, lists, listing) if lists else _named(part, listing)
        counts: dict[tuple[str, str | None], int] = {}
        for pair in pairs:
            counts[pair] = counts.get(pair, 0) + 1
        for (image, mask), count in sorted(counts.items(), key=lambda item: item[0][0]):
            rows.append(
                layout.tampered(
                    root,
                    image,
                    mask,
                    source=layout.coco_ids(layout.stem(image), "tampcoco"),
                    kind=PARTS[part],
                    name=f"{part}_{layout.stem(image)}",
                    meta={"part": part, **({"listed": count} if count > 1 else {})},
                    present=present,
                )
            )
    yield from layout.with_validation(rows, "tampcoco")


def _named(part: str, listing: list[str]) -> list[tuple[str, str | None]]:
    images = [path for path in listing if layout.is_image(path) and layout.folder(path) == f"{part}_images"]
    masks = [path for path in listing if layout.is_image(path) and layout.folder(path) == f"{part}_masks"]
    paired = layout.pair(images, masks, (("name", lambda path: layout.mask_stem(path)),))
    return [(path, paired[path][0] if path in paired else None) for path in images]


def _listed(root: Path, lists: list[str], listing: list[str]) -> list[tuple[str, str | None]]:
    """Pairs of all lists; their paths begin at the folder that holds `cm_images` and its like."""
    base = next((PurePosixPath(path).parents[1] for path in listing if layout.folder(path).endswith("_images")), None)
    pairs = []
    for path in lists:
        text = (Path(root) / path).read_text(encoding="utf-8", errors="replace")
        for line in filter(None, map(str.strip, text.splitlines())):
            names = [((base or PurePosixPath()) / name.strip()).as_posix() for name in line.split(",")[:2]]
            pairs.append((names[0], names[1] if len(names) > 1 else None))
    return pairs
