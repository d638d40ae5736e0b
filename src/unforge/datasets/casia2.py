"""CASIA v2 tampered image detection evaluation database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from unforge.datasets import layout
from unforge.types import Card, Found, StandIn

VERSION = "1"
NAME = re.compile(r"Tp_([SD])_([A-Z]{3})_([A-Z])_([A-Z])_([a-z]{3}\d+)_([a-z]{3}\d+)_(\d+)", re.IGNORECASE)

CARD = Card(
    name="CASIA v2",
    images={"authentic": 7491, "splice": 1849, "copy_move": 3274},
    licence="research use only; no licence text; the masks have none either",
    redistribute=False,
    source="Dong, Wang, Tan: CASIA Image Tampering Detection Evaluation Database, ChinaSIP 2013. Masks: Pham et al., "
    "Symmetry 2019, GitHub namtpham/casia2groundtruth.",
    layout="Au/Au_*.{jpg,bmp}, Tp/Tp_*.{jpg,tif}, 'CASIA 2 Groundtruth/<name>_gt.png'",
    defects=(
        "17 masks have another size than their image: rejected",
        "some masks are called otherwise than their image, one ends in _gt3.png: matched by type and id, then by "
        "method and id, each only where exactly one candidate is left; pairing by sorted listing is wrong on mirrors",
        "repeated files: the first is kept",
        "masks were made by subtraction and are noisy: kept as they are",
        "782 authentic images are also in CASIA v1: the near-duplicate check removes them from training",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 0.2, "splice": 0.4, "copy_move": 0.4},
    split="train",
    extension="jpg",
    quality=(88, 98),
    feather=(0.0, 2.0),
    area=(0.02, 0.3),
    donors="polygon",
)


def find(root: Path) -> Iterator[Found]:
    """Rows of the official layout or a mirror, with splits `train` and `val`."""
    listing = layout.files(root)
    masks = [path for path in listing if re.search(r"(?i)_gt\d?\.png$", path)]
    of_masks = set(masks)
    images = [path for path in listing if layout.is_image(path) and path not in of_masks and _match(path)]
    paired = layout.pair(images, masks, RULES)
    rows = []
    for path in images:
        mask, match = paired.get(path, (None, ""))
        parts = _match(mask or path) or _match(path)
        assert parts, path
        rows.append(
            layout.tampered(
                root,
                path,
                mask,
                source=(f"casia2:{parts[5].lower()}", f"casia2:{parts[6].lower()}"),
                kind="copy_move" if parts[1].upper() == "S" else "splice",
                meta={"match": match} if match else {},
            )
        )
    for path in listing:
        authentic = re.fullmatch(r"Au_([a-z]{3})_(\d+)", layout.stem(path), re.IGNORECASE)
        if layout.is_image(path) and authentic:
            rows.append(layout.authentic(root, path, source=(f"casia2:{(authentic[1] + authentic[2]).lower()}",)))
    yield from layout.with_validation(rows, "casia2")


def _match(path: str) -> re.Match[str] | None:
    return NAME.match(layout.stem(path).replace(".", "_"))


def _name(path: str) -> str:
    return re.sub(r"(?i)_gt\d?$", "", layout.stem(path)).lower()


def _type_id(path: str) -> tuple[str, str] | None:
    match = _match(path)
    return (match[1].upper(), match[7]) if match else None


def _method_id(path: str) -> tuple[str, ...] | None:
    match = _match(path)
    return (match[2].upper(), match[3].upper(), match[4].upper(), match[7]) if match else None


RULES: tuple[layout.Rule, ...] = (("name", _name), ("type_id", _type_id), ("method_id", _method_id))
