"""OpenSDID's training images: real, fully synthetic and locally edited by SD1.5, as a tree or as parquet files."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from unforge.datasets import layout, sidset
from unforge.types import Card, Found, Kind, StandIn

VERSION = "1"
GENERATOR = "llamagen"
"""What makes the stand-in's images: its tokenizer re-renders regions, its prior samples whole images."""
PUBLISHED = ("sd15", "sd2", "sdxl", "sd3", "flux")
"""Names of the generators in keys and in the names of parquet files."""
SCOPES = {"entire": "full_synthetic", "full": "full_synthetic", "partial": "tampered"}
"""First part of a key, and the class (`meta["part"]`) of its fake images."""
ROLES = {"real": 0, "fake": 1}
"""Folder in a key, and its label."""
MASKS = frozenset({"mask", "masks"})
COLUMNS = ("key", "image", "mask", "label")
KINDS: dict[str, Kind] = sidset.PARTS

CARD = Card(
    name="OpenSDID (training images, SD1.5)",
    images={"authentic": 100000},
    licence="CC-BY-SA-4.0; real photographs of megalith-10m under their own terms",
    redistribute=False,
    source="Wang et al.: OpenSDI, CVPR 2025; Hugging Face nebula/OpenSDI_train (split sd15). 100,000 real and "
    "100,000 fake images; how many of the fake ones are whole images is not published.",
    layout="parquet files called after their generator (sd15-00000-of-00070.parquet) with the columns key, image, "
    "mask, label (0 real, 1 fake), key: {entire,partial}/<generator>/{real,fake}/<photo>.jpg; or a tree of files "
    "called like the keys, with partial/<generator>/masks/<photo>.png beside fake (key `full` is taken as `entire`)",
    defects=(
        "the order of a key's parts was read off three published keys (partial/sd15/fake, partial/flux/fake) and what "
        "users report of the others (entire, real); a key without entire/ or partial/ on a fake image is rejected: its "
        "class is unknown (users report such PNG files in the test images of SD1.5)",
        "the published rows are 200,824, not 200,000",
        "photographs before they were edited, and prompts, are missing; images of equal number are taken to be of one "
        "photograph, so that they are on one side of every split",
        "the mask of a whole image says nothing: every pixel of it counts as manipulated (flagged as full mask)",
        "pixel metrics are published on partial/*/fake only (here kind regenerated), image metrics on all",
        "users report JPEG tables that tell real from fake at 94 %: the header baseline shows how far that gets",
        "test images of the same generator lie in files of the same name: keep folders or names apart by `train` and "
        "`test`, or add them from folders of their own",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 1 / 2, "generated": 1 / 6, "regenerated": 1 / 3},
    split="train",
    extension="jpg",
    quality=(86, 98),
    feather=(0.0, 1.5),
    area=(0.03, 0.35),
)
"""As many fake as real images, as published. ASSUMPTION(paper): two fake images in three are edited locally.
Formats and sizes are the same for the classes."""


def find(root: Path) -> Iterator[Found]:
    """Rows of SD1.5 that are not called test images; `meta["part"]` is real, full_synthetic or tampered."""
    rows = [row for row in everything(root, "sd15") if row.split != "test"]
    yield from (row for row in rows if row.split == "val")
    yield from layout.with_validation([row for row in rows if row.split != "val"], "opensdid")


def tests(root: Path, generator: str) -> Iterator[Found]:
    """Rows of a generator, by its published name, that are not called training images: all of split test."""
    for row in everything(root, generator):
        if row.split not in ("train", "val"):
            yield dataclasses.replace(row, split="test")


def everything(root: Path, generator: str) -> list[Found]:
    """Rows of the tree and of the parquet files below `root` that are of a generator, or of which nothing says whose
    they are. Their split is what folders and names say, or empty."""
    listing = layout.files(root)
    found = _tree(root, [path for path in listing if layout.is_image(path)], generator)
    for path in listing:
        if layout.extension(path) == "parquet" and generator_of(path) in ("", generator):
            row = functools.partial(_cell_row, path)
            found += sidset.table(root, path, COLUMNS, row, "opensdid")
    return [row for row in found if row.meta.get("generator", "") in ("", generator)]


def generator_of(path: str) -> str:
    """The generator that the beginning of a file's name or one of its folders is called after; else empty."""
    *folders, name = PurePosixPath(path).parts
    start = re.match(r"(?i)(?:(?:train|test)[-_.])?(sd15|sd2|sdxl|sd3|flux)[-_.]", name)
    for part in [*([start[1]] if start else []), *reversed(folders)]:
        if part.lower() in PUBLISHED:
            return part.lower()
    return ""


def _row(key: str, split: str, image: Path, mask: Path | None, *, generator: str = "", reason: str = "") -> Found:
    """The row of an image with a key. Its class comes from the key alone."""
    folders = [part.lower() for part in PurePosixPath(key).parts[:-1]]
    scope = next((part for part in folders if part in SCOPES), "")
    role = next((part for part in folders if part in ROLES), "")
    if not reason and not role:
        reason = f"key {key!r}: it says neither real nor fake"
    if not reason and role == "fake" and not scope:
        reason = f"key {key!r}: it says neither entire nor partial, so the class of this fake image is unknown"
    part = SCOPES.get(scope, "tampered") if role == "fake" else "real"
    if part == "tampered" and mask is None:
        reason = reason or layout.NO_MASK
    return Found(
        key=layout.key("_".join([*([scope] if scope else []), role or "image", layout.stem(key)])),
        image=image,
        mask=None if part == "real" else mask if part == "tampered" else sidset.Whole.of(image),
        label=int(part != "real"),
        kind=KINDS[part],
        source=_photograph(key, part),
        split=split,
        status="rejected" if reason else "ok",
        reason=reason,
        meta={"part": part, "generator": generator or generator_of(key)},
    )


def _photograph(key: str, part: str) -> tuple[str, ...]:
    """ASSUMPTION(paper): nine digits are the number of a photograph in megalith-10m. They exceed the number of images
    in the set, so that they count no images of it."""
    name = layout.stem(key)
    numbers = sorted({f"megalith:{number}" for number in re.findall(r"(?<!\d)\d{9}(?!\d)", name)})
    return tuple(numbers) or layout.coco_ids(name, f"opensdid_{part}")


def _tree(root: Path, listing: list[str], generator: str) -> list[Found]:
    """ASSUMPTION(paper): single files are not published yet; masks lie in `masks` (or `mask`) beside `fake`."""
    masks = [path for path in listing if layout.folder(path) in MASKS]
    images = [path for path in listing if layout.folder(path) in ROLES]
    own = [path for path in images if generator_of(path) in ("", generator)]
    fakes = [path for path in own if layout.folder(path) == "fake"]
    paired = layout.pair(fakes, masks, (("name", lambda path: (_beside(path), layout.mask_stem(path))),))
    return [
        _row(path, sidset.split_of(path), root / path, root / paired[path][0] if path in paired else None)
        for path in own
    ]


def _beside(path: str) -> str:
    return PurePosixPath(path).parent.parent.as_posix()


def _cell_row(path: str, file: Path, group: int, at: int, values: dict[str, Any]) -> Found:
    label, given = values.get("label"), values.get("image")
    called = str(given.get("path") or "") if isinstance(given, dict) else ""
    key = str(values.get("key") or called)
    name = layout.key(layout.stem(key) if key else f"row{group}-{at}")
    ending = next((layout.extension(text) for text in (called, key) if layout.is_image(text)), "jpg")
    image = sidset.Cell.of(file, group, at, "image", f"{group}-{at}_{name}.{ending}")
    mask = sidset.Cell.of(file, group, at, "mask", f"{group}-{at}_{name}_mask.png")
    return _row(
        key, sidset.split_of(path), image, mask, generator=generator_of(path), reason=_contradiction(key, label)
    )


def _contradiction(key: str, label: Any) -> str:
    """Why a label is of no use; empty when it agrees with the key."""
    if label not in ROLES.values() or not isinstance(label, int):
        return f"label {label!r}: accepted are 0 (real) and 1 (fake)"
    roles = [part.lower() for part in PurePosixPath(key).parts[:-1] if part.lower() in ROLES]
    if roles and ROLES[roles[0]] != label:
        return f"label {label} contradicts its key {layout.printable(key)!r}"
    return ""
