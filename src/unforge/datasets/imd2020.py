"""IMD2020, the real-life manipulated images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from unforge.datasets import layout
from unforge.types import Card, Found, StandIn

VERSION = "1"

CARD = Card(
    name="IMD2020 (real-life)",
    images={"authentic": 414, "unknown": 2010},
    licence="research use; images from the web, their rights remain with their owners",
    redistribute=False,
    source="Novozamsky, Mahdian, Saic: IMD2020, WACVW 2020; UTIA, Czech Academy of Sciences.",
    layout="<id>/<id>_orig.jpg, <id>/<name>.{jpg,png} and <id>/<name>_mask.png",
    defects=(
        "the mask of z14/00030_fake has another size: rejected",
        "0jpg/, which CAT-Net's preparation adds, holds re-encoded copies: left aside",
        "a training set in the CAT-Net protocol and a test set in TamperTok's tables: never both in one run here",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 0.2, "splice": 0.3, "copy_move": 0.15, "removal": 0.15, "regenerated": 0.2},
    split="train",
    extension="jpg",
    quality=(86, 98),
    feather=(0.0, 2.5),
    area=(0.02, 0.35),
    donors="polygon",
)


def find(root: Path) -> Iterator[Found]:
    """Rows of the official layout; all images of a folder share their source. Splits `train` and `val`."""
    listing = [path for path in layout.files(root) if layout.is_image(path)]
    masks = {path.lower(): path for path in listing}
    rows = []
    for path in listing:
        name, group = layout.stem(path), PurePosixPath(path).parent.name
        if re.search(r"(?i)_mask$", name) or group == "0jpg" or not group:
            continue
        source = (f"imd2020:{group}",)
        if re.search(r"(?i)_orig$", name):
            rows.append(layout.authentic(root, path, source=source, name=f"{group}_{name}"))
        else:
            mask = masks.get(f"{path.rsplit('.', 1)[0]}_mask.png".lower())
            rows.append(layout.tampered(root, path, mask, source=source, kind="unknown", name=f"{group}_{name}"))
    yield from layout.with_validation(rows, "imd2020")
