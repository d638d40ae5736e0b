"""A user's own images and masks: no code needed for `unforge data add mine DIR`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import get_args

from unforge.datasets import layout
from unforge.types import Card, Found, Kind, StandIn

VERSION = "1"
COLUMNS = ("image", "mask", "label", "kind", "split", "source")
IMAGES, MASKS = frozenset({"images", "image", "tp"}), frozenset({"masks", "mask", "gt"})
AUTHENTIC = frozenset({"authentic", "real", "au"})
SPLITS = ("train", "val", "test")

CARD = Card(
    name="your own images and masks",
    images={},
    licence="yours",
    redistribute=False,
    source="a directory, a zip or tar archive, or s3://",
    layout="images/<name>.* and masks/<name>.png (or <name>_mask.png, <name>_gt.png; white is manipulated), authentic "
    "images in authentic/ or without a mask in images/; or one CSV (pairs.csv, or the only *.csv) with the columns "
    "image,mask[,label,kind,split,source], paths relative to the CSV, mask empty for authentic images",
)

STAND_IN: StandIn | None = None


def find(root: Path) -> Iterator[Found]:
    """Rows of the CSV if there is one, else by name. ValueError when the CSV lacks its columns or there are several."""
    listing = layout.files(root)
    tables = [path for path in listing if layout.extension(path) == "csv"]
    named = [path for path in tables if PurePosixPath(path).name == "pairs.csv"]
    if len(tables) > 1 and len(named) != 1:
        raise ValueError(f"several CSV files ({', '.join(tables[:5])}): call the one with the pairs pairs.csv")
    if tables:
        yield from _table(root, (named or tables)[0], set(listing))
        return
    images = [path for path in listing if layout.is_image(path)]
    masks = [path for path in images if layout.folder(path) in MASKS]
    pictures = [path for path in images if layout.folder(path) in IMAGES]
    rules: tuple[layout.Rule, ...] = (
        ("name", lambda path: (_place(path), layout.stem(path))),
        ("stem", lambda path: (_place(path), layout.mask_stem(path))),
    )
    paired = layout.pair(pictures, masks, rules)
    for path in pictures:
        if path in paired:
            yield layout.tampered(root, path, paired[path][0], source=(_stem_source(path),), kind="unknown")
        else:
            yield layout.authentic(root, path, source=(_stem_source(path),))
    for path in images:
        if layout.folder(path) in AUTHENTIC:
            yield layout.authentic(root, path, source=(_stem_source(path),))


def _place(path: str) -> str:
    """The folder that holds both `images` and `masks`."""
    return PurePosixPath(path).parent.parent.as_posix()


def _stem_source(path: str) -> str:
    return f"file:{layout.stem(path)}"


def _table(root: Path, table: str, present: set[str]) -> Iterator[Found]:
    with open(Path(root) / table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = tuple(reader.fieldnames or ())
        rows = list(reader)
    if "image" not in columns or set(columns) - set(COLUMNS):
        raise ValueError(
            f"{table} has the columns {', '.join(columns)}; accepted are {', '.join(COLUMNS)}, image is needed"
        )
    base = PurePosixPath(table).parent
    for row in rows:
        yield _row(root, {name: (row.get(name) or "").strip() for name in COLUMNS}, base, present)


def _row(root: Path, row: dict[str, str], base: PurePosixPath, present: set[str]) -> Found:
    """One line of the CSV; what is wrong with it makes it a rejected row."""
    label = row["label"] or ("1" if row["mask"] else "0")
    kind = row["kind"] or ("unknown" if label == "1" else "authentic")
    split = row["split"] or "test"
    image = (base / row["image"]).as_posix()
    mask = (base / row["mask"]).as_posix() if row["mask"] else None
    reason = ""
    if label not in ("0", "1"):
        reason = f"label {label!r}: accepted are 0 (authentic) and 1 (manipulated)"
    elif kind not in get_args(Kind):
        reason = f"kind {kind!r}: accepted are {', '.join(get_args(Kind))}"
    elif (kind == "authentic") != (label == "0"):
        reason = f"kind {kind!r} contradicts label {label}"
    elif split not in SPLITS:
        reason = f"split {split!r}: accepted are {', '.join(SPLITS)}"
    elif label == "1" and mask is None:
        reason = layout.NO_MASK
    elif label == "0" and mask is not None:
        reason = "an authentic image has no mask: leave the column empty"
    for path in (image, mask):
        if not reason and path is not None and path not in present:
            reason = f"{path}: {layout.MISSING}"
    sources = tuple(sorted({name.strip() for name in row["source"].split(";") if name.strip()}))
    return Found(
        key=layout.key(layout.stem(image)),
        image=Path(root) / image,
        mask=None if mask is None else Path(root) / mask,
        label=1 if label == "1" else 0,
        kind=kind if kind in get_args(Kind) else "unknown",  # type: ignore[arg-type]
        source=sources or (_stem_source(image),),
        split=split if split in SPLITS else "test",
        status="rejected" if reason else "ok",
        reason=reason,
    )
