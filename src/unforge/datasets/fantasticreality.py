"""FantasticReality: splices with segmentation masks."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unforge.datasets import layout
from unforge.types import Card, Found, StandIn

if TYPE_CHECKING:
    import numpy as np

VERSION = "1"
MAX_MASK_BYTES = 2**30

CARD = Card(
    name="FantasticReality",
    images={"authentic": 15392, "splice": 18098},
    licence="research use, on request; the official link is dead",
    redistribute=False,
    source="Kniaz, Knyaz, Remondino: The point where reality meets fantasy, NeurIPS 2019. Counts: CAT-Net's lists.",
    layout="dataset/ColorFakeImages/*.jpg, dataset/SegmentationFake/<name>.npz (array arr_0), "
    "dataset/ColorRealImages/*.jpg",
    defects=(
        "masks are .npz with class numbers: everything above 0 is manipulated; mirrors with .png masks are read too",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 0.25, "splice": 0.75},
    split="train",
    extension="jpg",
    quality=(88, 98),
    feather=(0.0, 2.0),
    area=(0.03, 0.35),
    donors="polygon",
)


def read_mask(data: bytes) -> np.ndarray:
    """(H, W) bool of an `.npz` (array `arr_0`) or of an image. ValueError when it cannot be read."""
    import numpy as np

    if not data.startswith(b"PK"):
        return layout.grey(data) > 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_MASK_BYTES:
            raise ValueError(f"mask of {size} bytes unpacked: more than {MAX_MASK_BYTES}")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            array = np.squeeze(arrays["arr_0"])
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"mask cannot be read ({type(error).__name__}: {error})") from None
    if array.ndim != 2:
        raise ValueError(f"mask has the shape {array.shape}, not (height, width)")
    return np.asarray(array > 0)


def find(root: Path) -> Iterator[Found]:
    """Rows of the official layout, with splits `train` and `val`."""
    listing = layout.files(root)
    fakes = [path for path in listing if layout.is_image(path) and layout.folder(path) == "colorfakeimages"]
    masks = [
        path
        for path in listing
        if layout.folder(path) == "segmentationfake" and layout.extension(path) in ("npz", "png")
    ]
    paired = layout.pair(fakes, masks, (("name", lambda path: layout.stem(path).lower()),))
    rows = []
    for path in fakes:
        mask, _ = paired.get(path, (None, ""))
        name = layout.stem(path)
        rows.append(layout.tampered(root, path, mask, source=(f"fantasticreality:fake_{name}",), kind="splice"))
    for path in listing:
        if layout.is_image(path) and layout.folder(path) == "colorrealimages":
            name = f"real_{layout.stem(path)}"
            rows.append(layout.authentic(root, path, source=(f"fantasticreality:{name}",), name=name))
    yield from layout.with_validation(rows, "fantasticreality")
