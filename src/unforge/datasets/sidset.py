"""SID-Set: real, fully synthetic and tampered images, as a tree of files or as Hugging Face's parquet files.

Images in parquet files are read where they lie, one row at a time: nothing is unpacked, and what was downloaded is
what is kept. A row of a table is a path below its file (`train-00000.parquet/17_<img_id>.jpg`), so that every check
that files go through applies to it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

from unforge.datasets import layout
from unforge.types import Card, Found, Kind, StandIn

VERSION = "1"
SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
PARTS: dict[str, Kind] = {"real": "authentic", "full_synthetic": "generated", "tampered": "regenerated"}
"""Folder, `meta["part"]` and kind of a class; a class's place is its label in the parquet files (0, 1, 2)."""
COLUMNS = ("img_id", "image", "mask", "label")
BATCH = 8
"""Rows of a parquet file that are held at once."""
MAX_RATIO, RATIO_FLOOR = 200, 64 * 2**20
"""A column that unpacks to more than so many times its size is taken for a bomb, from so many bytes on."""
MAX_ROWS = 5_000_000

CARD = Card(
    name="SID-Set (train and validation)",
    images={"authentic": 80000, "generated": 80000, "regenerated": 80000},
    licence="CC-BY-4.0 on a copy's card; photographs of OpenImages, COCO and Flickr30k under their own terms",
    redistribute=False,
    source="Huang et al.: SIDA, CVPR 2025; Hugging Face saberzl/SID_Set (train, validation), the test images on Google "
    "Drive. Counts: 7/10 and 1/10 of 100,000 each.",
    layout="{train,validation}/{real/*.jpg, full_synthetic/*.png, tampered/*.png, masks/<name>_mask.png}, or parquet "
    "files called after their split (train-*.parquet, validation-*.parquet) with the columns img_id, image, mask, "
    "width, height, label (0 real, 1 fully synthetic, 2 tampered); without any split's name the images become train "
    "and val by their source",
    defects=(
        "the classes differ in file format and size (real JPEG of many sizes, the others PNG, mostly 1024 px): the "
        "header baseline shows how far that alone gets",
        "fully synthetic images have no mask: every pixel of them counts as manipulated (flagged as full mask)",
        "which photograph a tampered image was made from is lost: each image is its own source unless its name has a "
        "COCO number",
        "masks from 612 to 1024 px: one of another size than its image is rejected",
        "whether parquet files keep the original files is unknown: a format other than expected is flagged",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 1 / 3, "generated": 1 / 3, "regenerated": 1 / 3},
    split="train",
    extension="jpg",
    quality=(86, 98),
    feather=(0.0, 1.5),
    area=(0.03, 0.35),
)
"""Formats and sizes are the same for the three classes, unlike in the real set: only pixels can tell them apart."""


def find(root: Path) -> Iterator[Found]:
    """Rows of the splits train and validation; `meta["part"]` is real, full_synthetic or tampered."""
    rows, undivided = everything(root)
    yield from (row for row in rows if row.split in ("train", "val"))
    yield from layout.with_validation(undivided, "sidset")


def everything(root: Path) -> tuple[list[Found], list[Found]]:
    """Rows of the tree and of the parquet files below `root`: those whose split is known, and the others."""
    listing = layout.files(root)
    found = list(_tree(root, [path for path in listing if layout.is_image(path)]))
    for path in listing:
        if layout.extension(path) == "parquet":
            found += _table(root, path)
    return [row for row in found if row.split], [row for row in found if not row.split]


def split_of(path: str) -> str:
    """`train`, `val` or `test` by the folders of `path` and the beginning of its name; empty when none says so."""
    *folders, name = PurePosixPath(path).parts
    start = re.match(r"(?i)(train|validation|valid|val|test)[-_.]", name)
    for part in [*folders, *([start[1]] if start else [])]:
        if part.lower() in SPLITS:
            return SPLITS[part.lower()]
    return ""


def _row(part: str, split: str, name: str, image: Path, mask: Path | None, reason: str = "") -> Found:
    tampered = part == "tampered"
    reason = reason or (layout.NO_MASK if tampered and mask is None else "")
    return Found(
        key=layout.key(f"{part}_{name}"),
        image=image,
        mask=None if part == "real" else mask if tampered else Whole.of(image),
        label=int(part != "real"),
        kind=PARTS[part],
        source=layout.coco_ids(name, f"sidset_{part}"),
        split=split,
        status="rejected" if reason else "ok",
        reason=reason,
        meta={"part": part},
    )


def _tree(root: Path, listing: list[str]) -> Iterator[Found]:
    masks = [path for path in listing if layout.folder(path) == "masks"]
    tampered = [path for path in listing if layout.folder(path) == "tampered"]
    paired = layout.pair(tampered, masks, (("name", lambda path: (_place(path), layout.mask_stem(path))),))
    for path in listing:
        part = layout.folder(path)
        if part in PARTS:
            mask = Path(root) / paired[path][0] if path in paired else None
            yield _row(part, split_of(path), layout.stem(path), Path(root) / path, mask)


def _place(path: str) -> str:
    return PurePosixPath(path).parent.parent.as_posix()


def _table(root: Path, path: str) -> list[Found]:
    """A row for each row of a parquet file; one rejected row when it cannot be read."""
    import pyarrow as pa

    split, file, rows = split_of(path), Path(root) / path, []
    try:
        table = _opened(file)
        named = [name for name in ("img_id", "image.path", "label") if name in _leaves(table)]
        for group in range(table.num_row_groups):
            names = table.read_row_group(group, columns=named).to_pylist()
            rows += [_cell_row(file, split, group, at, values) for at, values in enumerate(names)]
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = f"{path}: not a readable parquet file of this set ({type(error).__name__}: {error})"
        rejected = Found(
            key=layout.key(path), image=file, mask=None, label=0, kind="unknown", source=(f"sidset:{path}",),
            split=split, status="rejected", reason=reason,
        )  # fmt: skip
        return [*rows, rejected]
    return rows


def _cell_row(file: Path, split: str, group: int, at: int, values: dict[str, Any]) -> Found:
    label, given = values.get("label"), values.get("image")
    known = isinstance(label, int) and 0 <= label < len(PARTS)
    part = list(PARTS)[label] if known else "real"  # type: ignore[index]  # an int where it is known
    called = str(given.get("path") or "") if isinstance(given, dict) else ""
    name = layout.key(str(values.get("img_id") or layout.stem(called) or f"row{group}-{at}"))
    ending = layout.extension(called) if layout.is_image(called) else "jpg" if part == "real" else "png"
    image = Cell.of(file, group, at, "image", f"{group}-{at}_{name}.{ending}")
    mask = Cell.of(file, group, at, "mask", f"{group}-{at}_{name}_mask.png")
    reason = "" if known else f"label {label!r}: accepted are 0 (real), 1 (fully synthetic) and 2 (tampered)"
    return _row(part, split, name, image, mask, reason)


def _opened(file: Path) -> Any:
    """The parquet file. ValueError when it lacks a column or looks like a bomb."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    missing = [name for name in COLUMNS if name not in table.schema_arrow.names]
    if missing:
        raise ValueError(f"it lacks the columns {', '.join(missing)}; it has {', '.join(table.schema_arrow.names)}")
    if table.metadata.num_rows > MAX_ROWS:
        raise ValueError(f"{table.metadata.num_rows} rows: more than {MAX_ROWS} are taken for a bomb")
    for group in range(table.num_row_groups):
        chunks = table.metadata.row_group(group)
        for column in range(chunks.num_columns):
            chunk = chunks.column(column)
            packed, size = chunk.total_compressed_size, chunk.total_uncompressed_size
            if size > RATIO_FLOOR and size > MAX_RATIO * max(packed, 1):
                raise ValueError(f"{chunk.path_in_schema} unpacks {packed} bytes to {size}: taken for a bomb")
    return table


def _leaves(table: Any) -> list[str]:
    return [table.schema.column(at).path for at in range(len(table.schema))]


class _Rows:
    """The rows of one parquet file, cheapest when asked for in their order."""

    def __init__(self, file: Path) -> None:
        self.table = _opened(file)
        self.columns = [name for name in _leaves(self.table) if name in ("image", "mask", "image.bytes", "mask.bytes")]
        self.group, self.start = -1, 0
        self.batch: Any = None
        self.batches: Iterator[Any] = iter(())

    def value(self, group: int, at: int, column: str) -> bytes | None:
        """The file in a cell, None where there is none."""
        if group != self.group or at < self.start or self.batch is None:
            self.batches = self.table.iter_batches(batch_size=BATCH, row_groups=[group], columns=self.columns)
            self.group, self.start, self.batch = group, 0, next(self.batches)
        while at >= self.start + self.batch.num_rows:
            self.start, self.batch = self.start + self.batch.num_rows, next(self.batches)
        cell = self.batch.column(column)[at - self.start].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is not None and not isinstance(data, bytes):
            raise ValueError(f"column {column} holds {type(data).__name__}, not the bytes of a file")
        return data or None


@lru_cache(maxsize=2)
def _rows(file: Path, size: int, changed: int) -> _Rows:
    """`size` and `changed` (ns) tell a file from one that took its place."""
    return _Rows(file)


class Inside(PosixPath):
    """A file that does not lie on the disk by itself; what reads files reads it. Not there: ValueError says why."""

    def content(self) -> bytes:
        """Bytes of the file."""
        raise NotImplementedError

    def is_file(self) -> bool:
        return True

    def read_bytes(self) -> bytes:
        return self.content()

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return os.stat_result((stat.S_IFREG | 0o444, 0, 0, 1, 0, 0, len(self.content()), 0, 0, 0))


class Cell(Inside):
    """The file in one cell of a parquet file."""

    place: tuple[Path, int, int, str]

    @classmethod
    def of(cls, file: Path, group: int, at: int, column: str, name: str) -> Cell:
        """The file in `column` of row `at` of a row group, called `name`."""
        cell = cls(file / name)
        cell.place = (file, group, at, column)
        return cell

    def content(self) -> bytes:
        """Bytes of the cell."""
        import pyarrow as pa

        file, group, at, column = self.place
        try:
            status = file.stat()
            data = _rows(file, status.st_size, status.st_mtime_ns).value(group, at, column)
        except (pa.ArrowException, StopIteration, OSError) as error:
            raise ValueError(f"row {at} of group {group} cannot be read ({type(error).__name__}: {error})") from None
        if data is None:
            raise ValueError(layout.NO_MASK if column == "mask" else "the row has no image")
        return data


class Whole(Inside):
    """The mask of an image of which every pixel was made: a PNG of its size, all white."""

    image: Path

    @classmethod
    def of(cls, image: Path) -> Whole:
        """The mask of the file `image`."""
        mask = cls(image.parent / f"{layout.stem(image.name)}_whole.png")
        mask.image = image
        return mask

    def content(self) -> bytes:
        """PNG, mode L, 255 everywhere."""
        import numpy as np

        from unforge import shards

        header = shards.open_image(self.image.read_bytes())
        return shards.encode_png(np.ones((header.height, header.width), dtype=bool))
