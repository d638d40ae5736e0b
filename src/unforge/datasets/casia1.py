"""CASIA v1 tampered image detection evaluation database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from unforge.datasets import layout
from unforge.types import Card, Found, StandIn

VERSION = "1"
CATEGORIES = ("ani", "arc", "art", "cha", "nat", "pla", "sec", "txt")
TYPOS = {"ant": "nat", "sce": "sec"}
"""Category codes with swapped letters in file names of the tampered images."""
TURNED = "Sp_D_CNN_A_sec0012_ani0007_0275"
NAME = re.compile(r"(?:Sp|Tp)_([SD])_([A-Z]{3})_([A-Z])_([a-z]{3}\d{4})_([a-z]{3}\d{4})_(\d{4})", re.IGNORECASE)

CARD = Card(
    name="CASIA v1",
    images={"authentic": 800, "splice": 462, "copy_move": 459},
    licence="research use only; no licence text; the masks have none either",
    redistribute=False,
    source="Dong, Wang, Tan: CASIA Image Tampering Detection Evaluation Database, ChinaSIP 2013; the official host is "
    "gone. Masks and corrected copy: Pham et al., Symmetry 2019, GitHub namtpham/casia1groundtruth.",
    layout="Au/Au_*.jpg, 'Modified Tp/Tp/{CM,Sp}/Sp_*.jpg' (official) or Sp/Sp_*.jpg with both kinds together "
    "(widespread mirror), 'CASIA 1.0 groundtruth/{CM,Sp}/*_gt.png'",
    defects=(
        "105 tampered images are called otherwise than their masks (source ids swapped, S and D mixed up): they are "
        "matched by type and id, then by method and id, each only where exactly one candidate is left; the mask's "
        "name, corrected by its author, decides splice or copy-move and the sources",
        "category codes ant and sce are misspelt nat and sec, and a dot stands for _ before two ids: corrected",
        "Sp_D_NRN_A_cha0011_sec0011_0542 (also Sp_D_NRN_A_sce0011_cha0011_0542) has no mask: rejected",
        "the mask of Sp_D_CNN_A_sec0012_ani0007_0275 is stored turned by 90 degrees, so of another size: turned "
        "back (it then covers what differs from the authentic photograph, IoU 0.94) and flagged",
        "mirrors lack up to 11 authentic images: named by `missing`",
        "782 authentic images are also in CASIA v2: the near-duplicate check finds them in a training set",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 0.25, "splice": 0.38, "copy_move": 0.37},
    split="test",
    extension="jpg",
    quality=(88, 98),
    feather=(0.0, 2.0),
    area=(0.02, 0.25),
    donors="polygon",
)


def find(root: Path) -> Iterator[Found]:
    """Rows of the official layout or a mirror, tampered images first, sorted.

    `meta["match"]` says how the mask was found: `name`, `type_id` or `method_id`.
    """
    listing = layout.files(root)
    masks = [path for path in listing if re.search(r"(?i)_gt\d?\.png$", path)]
    of_masks = set(masks)
    images = [path for path in listing if layout.is_image(path) and path not in of_masks and NAME.match(_name(path))]
    corrected = [path for path in images if "modified tp/" in path.lower()]
    paired = layout.pair(corrected or images, masks, RULES)
    for path in corrected or images:
        mask, match = paired.get(path, (None, ""))
        parts = _parts(mask or path)
        yield layout.tampered(
            root,
            path,
            mask,
            source=(f"casia1:{parts[3]}", f"casia1:{parts[4]}"),
            kind="copy_move" if parts[0] == "S" else "splice",
            meta={**({"match": match} if match else {}), **({"mask_turns": 1} if _name(path) == TURNED else {})},
        )
    for path in listing:
        authentic = re.fullmatch(r"Au_([a-z]{3})_(\d{4})", layout.stem(path), re.IGNORECASE)
        if layout.is_image(path) and authentic:
            yield layout.authentic(root, path, source=(f"casia1:{(authentic[1] + authentic[2]).lower()}",))


def missing(root: Path) -> list[str]:
    """File names of the authentic images that the official set has and `root` has not."""
    there = {layout.stem(path).lower() for path in layout.files(root)}
    names = (f"Au_{category}_{number:04d}" for category in CATEGORIES for number in range(1, 101))
    return [f"{name}.jpg" for name in names if name.lower() not in there]


def _name(path: str) -> str:
    """Name of an image or a mask without ending, with the known misspellings corrected."""
    name = re.sub(r"(?i)_gt\d?$", "", layout.stem(path)).replace(".", "_")
    return re.sub(r"_(ant|sce)(?=\d)", lambda match: f"_{TYPOS[match[1]]}", name)


def _parts(path: str) -> tuple[str, ...]:
    """Type, method, area, first and second source id, number; as in the name, corrected."""
    match = NAME.match(_name(path))
    assert match, path
    return match[1].upper(), match[2].upper(), match[3].upper(), match[4].lower(), match[5].lower(), match[6]


def _type_id(path: str) -> tuple[str, str] | None:
    return (_parts(path)[0], _parts(path)[5]) if NAME.match(_name(path)) else None


def _method_id(path: str) -> tuple[str, str, str] | None:
    return (_parts(path)[1], _parts(path)[2], _parts(path)[5]) if NAME.match(_name(path)) else None


RULES: tuple[layout.Rule, ...] = (
    ("name", lambda path: _name(path).lower()),
    ("type_id", _type_id),
    ("method_id", _method_id),
)
