"""What the dataset modules share: listing files, keys, pairing images with masks, validation splits."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from unforge import seeds
from unforge.types import Found

if TYPE_CHECKING:
    import numpy as np

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "png", "tif", "tiff", "bmp", "webp", "gif"})
"""File name endings taken for images (what a file really is, its content decides)."""
IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
VALIDATION_SHARE = 0.05
CALIBRATION_SHARE = 0.3
NO_MASK = "no mask found for this tampered image"
MISSING = "listed, but the file is not there"

Rule = tuple[str, Callable[[str], Hashable | None]]


def files(root: Path) -> list[str]:
    """All files below `root` as sorted posix paths relative to it, without hidden and system files.

    ValueError when `root` is not a directory.
    """
    if not Path(root).is_dir():
        raise ValueError(f"{root} is not a directory")
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not _ignored(name)]
        base = Path(folder).relative_to(root)
        found += [(base / name).as_posix() for name in names if not _ignored(name)]
    return sorted(found)


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def extension(path: str) -> str:
    """Lower-case file name ending without the dot."""
    return PurePosixPath(path).suffix[1:].lower()


def is_image(path: str) -> bool:
    """Whether the file is called like an image."""
    return extension(path) in IMAGE_EXTENSIONS


def stem(path: str) -> str:
    """File name without folder and the last ending; bytes that are no UTF-8 are escaped."""
    return printable(PurePosixPath(path).stem)


def printable(path: str) -> str:
    """`path` as text that can be stored: bytes that are no UTF-8 become \\udcXX."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def folder(path: str) -> str:
    """Lower-case name of the folder a file lies in ('' at the root)."""
    return PurePosixPath(path).parent.name.lower()


def key(text: str) -> str:
    """`text` as a shard key: `[A-Za-z0-9_-]`, at most 80 characters.

    Ingestion adds a hash when two files of a set come to the same key.
    """
    clean = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_") or "image"
    if len(clean) > 80:
        clean = f"{clean[:71]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return clean


def pair(images: Sequence[str], masks: Sequence[str], rules: Sequence[Rule]) -> dict[str, tuple[str, str]]:
    """Mask and rule name of each image that gets one.

    Rules are tried in order on what earlier ones left; a rule pairs an image and a mask only when its
    value (None: no opinion) occurs once among the remaining images and once among the remaining masks.
    """
    paired: dict[str, tuple[str, str]] = {}
    for name, value in rules:
        taken = {mask for mask, _ in paired.values()}
        left = _groups((image for image in images if image not in paired), value)
        right = _groups((mask for mask in masks if mask not in taken), value)
        for group, members in left.items():
            candidates = right.get(group, [])
            if len(members) == 1 and len(candidates) == 1:
                paired[members[0]] = (candidates[0], name)
    return paired


def _groups(items: Iterable[str], value: Callable[[str], Hashable | None]) -> dict[Hashable, list[str]]:
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for item in items:
        group = value(item)
        if group is not None:
            groups[group].append(item)
    return groups


def mask_stem(path: str) -> str:
    """Stem of a mask's file name without the endings by which mirrors mark masks."""
    return re.sub(r"(?i)[_-]?(mask|gt\d?|edgemask|forged|groundtruth)$", "", stem(path))


def with_validation(rows: Iterable[Found], dataset: str, share: float = VALIDATION_SHARE) -> list[Found]:
    """`rows` of a training set with split `train` or `val`, so that no photograph is on both sides.

    Images that share a source photograph, directly or over other images, stay together. Groups go to
    `val` in the order of the hash of their first photograph until `share` of the images is there; a
    group that would overshoot stays in `train`.
    """
    rows = list(rows)
    parent: dict[str, str] = {}

    def top(source: str) -> str:
        parent.setdefault(source, source)
        while parent[source] != source:
            parent[source] = parent[parent[source]]
            source = parent[source]
        return source

    for row in rows:
        for source in row.source:
            first, second = sorted((top(row.source[0]), top(source)))
            parent[second] = first
    groups: dict[str, int] = defaultdict(int)
    for row in rows:
        groups[top(row.source[0])] += 1
    room = round(share * len(rows))
    validation = set()
    for group in sorted(groups, key=lambda name: (seeds.fraction(0, name, f"{dataset} validation"), name)):
        if groups[group] <= room:
            validation.add(group)
            room -= groups[group]
    return [dataclasses.replace(r, split="val" if top(r.source[0]) in validation else "train") for r in rows]


def held_out(row: Found, dataset: str, share: float = CALIBRATION_SHARE) -> Found:
    """`row` of a set that is never trained on, with split `val` for `share` of the photographs, else `test`.

    By the hash of the photograph, so it is the same in every subset. `val` is what thresholds are calibrated on.
    """
    calibrates = seeds.fraction(0, row.source[0], f"{dataset} calibration") < share
    return dataclasses.replace(row, split="val" if calibrates else "test")


def tampered(
    root: Path,
    image: str,
    mask: str | None,
    *,
    source: Iterable[str],
    kind: str,
    name: str | None = None,
    meta: Mapping[str, object] | None = None,
    present: frozenset[str] | set[str] | None = None,
) -> Found:
    """Row of a tampered image; rejected when it has no mask, or when it or its mask is not among `present`."""
    reason = NO_MASK if mask is None else ""
    if present is not None:
        for path in (image, mask):
            if path is not None and path not in present:
                reason = f"{path}: {MISSING}"
    return Found(
        key=key(name or stem(image)),
        image=Path(root) / image,
        mask=None if mask is None else Path(root) / mask,
        label=1,
        kind=kind,  # type: ignore[arg-type]
        source=tuple(sorted(set(source))),
        status="rejected" if reason else "ok",
        reason=reason,
        meta=dict(meta or {}),
    )


def authentic(
    root: Path,
    image: str,
    *,
    source: Iterable[str],
    name: str | None = None,
    present: frozenset[str] | set[str] | None = None,
) -> Found:
    """Row of an authentic image; rejected when it is not among `present`."""
    reason = f"{image}: {MISSING}" if present is not None and image not in present else ""
    return Found(
        key=key(name or stem(image)),
        image=Path(root) / image,
        mask=None,
        label=0,
        kind="authentic",
        source=tuple(sorted(set(source))),
        status="rejected" if reason else "ok",
        reason=reason,
    )


def read_mask(data: bytes) -> np.ndarray:
    """(H, W) bool of a mask file: manipulated where the mean of R, G and B is above 127.5.

    Source: SparseViT's and IMDL-BenCo's data loaders. ValueError when it cannot be decoded.
    """
    import numpy as np

    return np.asarray(pixels(data).sum(axis=2, dtype=np.uint16) > 3 * 127.5)


def pixels(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8 of a mask file. ValueError when it cannot be decoded."""
    from unforge import shards

    return shards.decode_image(data)


def grey(data: bytes) -> np.ndarray:
    """(H, W) of a mask file in its own numbers: palette indices, 0/1 or 0/255, the largest channel of RGB.

    ValueError when it cannot be decoded.
    """
    import numpy as np
    from PIL import Image

    from unforge import shards

    shards.decode_image(data)  # raises with a reason; palette masks are read by index below
    image = Image.open(io.BytesIO(data))
    array = np.asarray(image.convert("RGB") if image.mode in ("RGBA", "LA", "CMYK") else image)
    return array if array.ndim == 2 else array.max(axis=2)


def coco_ids(name: str, prefix: str) -> tuple[str, ...]:
    """Ids of the COCO photographs (12 digits) in a file name; `prefix:name` when there is none."""
    ids = sorted({f"coco:{number}" for number in re.findall(r"(?<!\d)\d{12}(?!\d)", name)})
    return tuple(ids) or (f"{prefix}:{name}",)
