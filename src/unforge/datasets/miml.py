"""MIML: manipulated images from the web with masks drawn automatically."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from unforge.datasets import layout
from unforge.types import Card, Found, StandIn

VERSION = "1"
IMAGES = frozenset({"imgs", "img", "images", "image", "tampered", "forged", "tp"})
MASKS = frozenset({"masks", "mask", "gts", "gt", "labels", "label"})
AUTHENTIC = frozenset({"authentic", "original", "originals", "real", "au"})

CARD = Card(
    name="MIML",
    images={"unknown": 123150},
    licence="CC-BY-NC-4.0, on application by an institution; photographs from Reddit (PSBattles), their rights remain "
    "with their owners",
    redistribute=False,
    source="Qu et al.: Towards modern image manipulation localization, CVPR 2024; GitHub qcf-568/MIML (Kaggle, Baidu).",
    layout="unverified: [part/]{imgs,images,tampered}/<name>.* and [part/]{masks,gt,labels}/<name>.png (also "
    "<name>_mask.png, also beside the image); [part/]{authentic,original,real}/ if there is one",
    defects=(
        "the layout was not seen: these folder names are the usual ones, and what they do not fit is listed as unused",
        "masks are the work of a network and not of a person: kept as they are",
        "which photograph an image was made from is not recorded: each image is its own source, so repeated "
        "photographs are found by perceptual hash only",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 0.2, "splice": 0.4, "copy_move": 0.3, "removal": 0.1},
    split="train",
    extension="jpg",
    quality=(86, 98),
    feather=(0.0, 2.5),
    area=(0.02, 0.35),
    donors="polygon",
)


def find(root: Path) -> Iterator[Found]:
    """Rows by folder and name, with splits `train` and `val`. The kind of a manipulation is not recorded."""
    listing = [path for path in layout.files(root) if layout.is_image(path)]
    masks = [path for path in listing if layout.folder(path) in MASKS or layout.mask_stem(path) != layout.stem(path)]
    of_masks = set(masks)
    images = [path for path in listing if layout.folder(path) in IMAGES and path not in of_masks]
    paired = layout.pair(images, masks, RULES)
    rows = []
    for path in images:
        mask, _ = paired.get(path, (None, ""))
        rows.append(layout.tampered(root, path, mask, source=(_source(path),), kind="unknown", name=_name(path)))
    for path in listing:
        if layout.folder(path) in AUTHENTIC and path not in of_masks:
            name = f"real_{_name(path)}"
            rows.append(layout.authentic(root, path, source=(_source(path),), name=name))
    yield from layout.with_validation(rows, "miml")


def _place(path: str) -> str:
    """The folder that holds both images and masks."""
    return PurePosixPath(path).parent.parent.as_posix()


def _name(path: str) -> str:
    """The image's name with the parts of the set it lies in: parts may repeat names."""
    parts = PurePosixPath(path).parts[:-2]
    return "_".join((*parts[-1:], layout.stem(path)))


def _source(path: str) -> str:
    return f"miml:{_place(path)}/{layout.stem(path)}"


RULES: tuple[layout.Rule, ...] = (
    ("name", lambda path: (_place(path), layout.stem(path))),
    ("stem", lambda path: (_place(path), layout.mask_stem(path))),
)
