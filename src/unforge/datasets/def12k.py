"""DEF-12k: 12,000 images of DEFACTO and COCO, as MVSS-Net lists them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from unforge.datasets import layout
from unforge.types import Card, Found, Kind, StandIn

VERSION = "1"
KINDS: tuple[tuple[str, Kind], ...] = (("copymove", "copy_move"), ("splicing", "splice"), ("inpainting", "removal"))

CARD = Card(
    name="DEF-12k",
    images={"authentic": 6000, "splice": 2000, "copy_move": 2000, "removal": 2000},
    licence="DEFACTO: research use; photographs: COCO terms (Flickr)",
    redistribute=False,
    source="Mahfoudi et al.: DEFACTO, EUSIPCO 2019; the list: Chen et al., ICCV 2021 (GitHub dong03/MVSS-Net).",
    layout="{copymove,splicing*,inpainting}_img/img/*.tif, {...}_annotations/probe_mask/*.jpg, authentic COCO test2014 "
    "images in authentic/ or test2014/, and MVSS-Net's list (def12k.txt or *DEFACTO*.txt: image mask label per line, "
    "mask None if authentic); without a list every image is taken",
    defects=(
        "masks are JPEG: binarised at 127.5",
        "regions down to a few pixels: kept (an image whose mask is empty after binarising is rejected)",
        "SparseViT tests on its own random 6,000 and does not say which: MVSS-Net's list is used",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 0.3, "splice": 0.24, "copy_move": 0.23, "removal": 0.23},
    split="test",
    extension="tif",
    feather=(0.0, 1.5),
    area=(0.004, 0.06),
    donors="polygon",
)


def find(root: Path) -> Iterator[Found]:
    """Rows of MVSS-Net's list if one lies there, else of all images of the DEFACTO folders."""
    listing = layout.files(root)
    lists = [path for path in listing if re.search(r"(?i)(def-?12k|defacto)[^/]*\.txt$", path)]
    if lists:
        yield from _listed(root, lists[0], listing)
        return
    images = [path for path in listing if layout.is_image(path)]
    masks = [path for path in images if layout.folder(path) == "probe_mask"]
    tampered = [path for path in images if layout.folder(path) == "img" and _kind(path) != "unknown"]
    paired = layout.pair(tampered, masks, (("name", lambda path: (_part(path), layout.stem(path).lower())),))
    for path in tampered:
        mask, _ = paired.get(path, (None, ""))
        yield _tampered(root, path, mask, None)
    for path in images:
        if layout.folder(path) in ("authentic", "test2014", "au"):
            yield layout.authentic(root, path, source=layout.coco_ids(layout.stem(path), "def12k"))


def _listed(root: Path, path: str, listing: list[str]) -> Iterator[Found]:
    present = set(listing)
    seen = set()
    text = (Path(root) / path).read_text(encoding="utf-8", errors="replace")
    for line in sorted(filter(None, map(str.strip, text.splitlines()))):
        image, mask, *_ = [*re.split(r"[\s,]+", line), "None"]
        image = _resolve(image, listing, present)
        if image in seen:
            continue
        seen.add(image)
        if mask.lower() in ("none", "0", ""):
            yield layout.authentic(root, image, source=layout.coco_ids(layout.stem(image), "def12k"), present=present)
        else:
            yield _tampered(root, image, _resolve(mask, listing, present), present)


def _resolve(name: str, listing: list[str], present: set[str]) -> str:
    """The listed file below the root: the list's paths begin at folders of their own."""
    parts = PurePosixPath(name).parts
    for start in range(len(parts)):
        tail = "/".join(parts[start:])
        if tail in present:
            return tail
    return name.lstrip("/")


def _tampered(root: Path, image: str, mask: str | None, present: set[str] | None) -> Found:
    return layout.tampered(
        root,
        image,
        mask,
        source=layout.coco_ids(layout.stem(image), "def12k"),
        kind=_kind(image),
        name=f"{_part(image)}_{layout.stem(image)}",
        present=present,
    )


def _part(path: str) -> str:
    """`splicing_1` of `splicing_1_img/img/x.tif` and of `splicing_1_annotations/probe_mask/x.jpg`."""
    for part in path.lower().split("/"):
        match = re.fullmatch(r"((?:copymove|splicing|inpainting)(?:_\d+)?)(?:_img|_annotations)?", part)
        if match:
            return match[1]
    return "image"


def _kind(path: str) -> Kind:
    return next((kind for word, kind in KINDS if word in path.lower()), "unknown")
