"""SID-Set: real, fully synthetic and tampered images, as a tree of files or as Hugging Face's parquet files.

Images in parquet files are read where they lie, one row at a time: nothing is unpacked, and what was downloaded is
what is kept. A row of a table is a path below its file (`train-00000.parquet/17_<img_id>.jpg`), so that every check
that files go through applies to it.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

from unforge.datasets import layout
from unforge.types import Card, Found, Kind, StandIn

VERSION = "1"
SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
PARTS: dict[str, Kind] = {"real": "authentic", "full_synthetic": "generated", "tampered": "regenerated"}
"""Folder, `meta["part"]` and kind of a class; a class's place is its label in the parquet files (0, 1, 2)."""
COLUMNS = ("img_id", "image", "mask", "label")
LIGHT = ("img_id", "key", "image.path", "label", "width", "height")
"""Columns without the bytes of files: all that rows are made of."""
HEAD = 2**16
"""Bytes at the beginning of a file that its size in pixels is looked for in."""
SHAPE = 0.02
"""A mask whose proportions differ from its image's by no more than this share is the image's at another size."""
BATCH = 8
"""Rows of a parquet file that are held at once."""
MAX_RATIO, RATIO_FLOOR = 200, 64 * 2**20
"""A column that unpacks to more than so many times its size is taken for a bomb, from so many bytes on."""
MAX_ROWS = 5_000_000
CellRow = Callable[[Path, int, int, dict[str, Any]], Found]

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
        "masks from 612 to 1024 px: one of another size than its image is brought to the image's (nearest) and flagged "
        "where the proportions agree within 2 %, else rejected",
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
            found += table(root, path, COLUMNS, functools.partial(_cell_row, split_of(path)), "sidset")
    return [row for row in found if row.split], [row for row in found if not row.split]


def split_of(path: str) -> str:
    """`train`, `val` or `test` by the folders of `path` and the beginning of its name; empty when none says so."""
    *folders, name = PurePosixPath(path).parts
    start = re.match(r"(?i)(train|validation|valid|val|test)[-_.]", name)
    for part in [*folders, *([start[1]] if start else [])]:
        if part.lower() in SPLITS:
            return SPLITS[part.lower()]
    return ""


def _row(
    part: str, split: str, name: str, image: Path, mask: Path | None, *, reason: str = "", note: str = ""
) -> Found:
    """`reason`: why it is rejected; `note`: why it is flagged."""
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
        status="rejected" if reason else "flagged" if note else "ok",
        reason=reason or note,
        meta={"part": part},
    )


def _tree(root: Path, listing: list[str]) -> Iterator[Found]:
    masks = [path for path in listing if layout.folder(path) == "masks"]
    tampered = [path for path in listing if layout.folder(path) == "tampered"]
    paired = layout.pair(tampered, masks, (("name", lambda path: (_place(path), layout.mask_stem(path))),))
    for path in listing:
        part = layout.folder(path)
        if part in PARTS:
            image, mask = Path(root) / path, Path(root) / paired[path][0] if path in paired else None
            note = ""
            if mask is not None:
                mask, note = fitted(image, size_of(image), mask, size_of(mask))
            yield _row(part, split_of(path), layout.stem(path), image, mask, note=note)


def _place(path: str) -> str:
    return PurePosixPath(path).parent.parent.as_posix()


def table(root: Path, path: str, columns: Sequence[str], row: CellRow, names: str) -> list[Found]:
    """`row` of each row of a parquet file that has `columns`; one rejected row when it cannot be read.

    `row` is given the file, the row's group and place in it, and its values without the bytes of files. `names`: the
    set, for the ids of what cannot be read.
    """
    import pyarrow as pa

    split, file, rows = split_of(path), Path(root) / path, list[Found]()
    try:
        content = _opened(file, columns)
        light = [name for name in _leaves(content) if name in LIGHT]
        for group in range(content.num_row_groups):
            values = content.read_row_group(group, columns=light).to_pylist()
            rows += [row(file, group, at, each) for at, each in enumerate(values)]
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = f"{path}: not a readable parquet file of this set ({type(error).__name__}: {error})"
        rejected = Found(
            key=layout.key(path), image=file, mask=None, label=0, kind="unknown", source=(f"{names}:{path}",),
            split=split, status="rejected", reason=reason,
        )  # fmt: skip
        return [*rows, rejected]
    return rows


def _cell_row(split: str, file: Path, group: int, at: int, values: dict[str, Any]) -> Found:
    label, given = values.get("label"), values.get("image")
    known = isinstance(label, int) and 0 <= label < len(PARTS)
    part = list(PARTS)[label] if known else "real"  # type: ignore[index]  # an int where it is known
    called = str(given.get("path") or "") if isinstance(given, dict) else ""
    name = layout.key(str(values.get("img_id") or layout.stem(called) or f"row{group}-{at}"))
    ending = layout.extension(called) if layout.is_image(called) else "jpg" if part == "real" else "png"
    image = Cell.of(file, group, at, "image", f"{group}-{at}_{name}.{ending}")
    mask: Path = Cell.of(file, group, at, "mask", f"{group}-{at}_{name}_mask.png")
    note, sides = "", (values.get("width"), values.get("height"))
    if part == "tampered" and all(isinstance(side, int) and side > 0 for side in sides):
        mask, note = fitted(image, sides, mask, size_of(Cell.of(file, group, at, "mask", mask.name, alone=True)))
    reason = "" if known else f"label {label!r}: accepted are 0 (real), 1 (fully synthetic) and 2 (tampered)"
    return _row(part, split, name, image, mask, reason=reason, note=note)


def _opened(file: Path, columns: Sequence[str] = ("image", "mask")) -> Any:
    """The parquet file. ValueError when it lacks a column or looks like a bomb."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    missing = [name for name in columns if name not in table.schema_arrow.names]
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

    def __init__(self, file: Path, names: Sequence[str]) -> None:
        self.table = _opened(file)
        wanted = {*names, *(f"{name}.bytes" for name in names)}
        self.columns = [name for name in _leaves(self.table) if name in wanted]
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


@functools.lru_cache(maxsize=4)
def _rows(file: Path, size: int, changed: int, names: tuple[str, ...]) -> _Rows:
    """`size` and `changed` (ns) tell a file from one that took its place."""
    return _Rows(file, names)


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
    read: tuple[str, ...]

    @classmethod
    def of(cls, file: Path, group: int, at: int, column: str, name: str, alone: bool = False) -> Cell:
        """The file in `column` of row `at` of a row group, called `name`; `alone`: the row's other files are not read
        with it."""
        cell = cls(file / name)
        cell.place, cell.read = (file, group, at, column), (column,) if alone else ("image", "mask")
        return cell

    def content(self) -> bytes:
        """Bytes of the cell."""
        import pyarrow as pa

        file, group, at, column = self.place
        try:
            status = file.stat()
            data = _rows(file, status.st_size, status.st_mtime_ns, self.read).value(group, at, column)
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


class Fitted(Inside):
    """The mask of an image at the image's size, where it is stored at another one."""

    image: Path
    mask: Path

    @classmethod
    def of(cls, image: Path, mask: Path) -> Fitted:
        """`mask`, called as it is, for the file `image`."""
        file = cls(mask)
        file.image, file.mask = image, mask
        return file

    def content(self) -> bytes:
        """PNG, mode L, 0 or 255, resized by nearest neighbour; the mask as it is unless the shapes agree."""
        import numpy as np
        from PIL import Image

        from unforge import shards

        data, size = self.mask.read_bytes(), shards.open_image(self.image.read_bytes()).size
        if not agree(size, shards.open_image(data).size):
            return data
        stored = Image.fromarray(layout.read_mask(data).astype(np.uint8) * 255)
        return shards.encode_png(np.asarray(stored.resize(size, Image.Resampling.NEAREST)))


def fitted(image: Path, size: Any, mask: Path, stored: Any) -> tuple[Path, str]:
    """The mask of an image, and what is to be known about it. `size` and `stored`: (width, height) of image and mask,
    None where it is unknown."""
    if not agree(size, stored):
        return mask, ""
    note = f"mask of {stored[0]}x{stored[1]} pixels, the image {size[0]}x{size[1]}: brought to its size"
    return Fitted.of(image, mask), note


def agree(size: Any, stored: Any) -> bool:
    """Whether a mask of `stored` (width, height) is that of an image of `size`, at another size: not the same one nor
    that of the image lying on its side, and proportions within `SHAPE`."""
    if size is None or stored is None or stored in (tuple(size), tuple(size)[::-1]):
        return False
    own = stored[1] * size[0]
    return bool(abs(stored[0] * size[1] - own) <= SHAPE * own)


def size_of(file: Path) -> tuple[int, int] | None:
    """(width, height) by the head of a file; None where it cannot be told."""
    from unforge import shards

    try:
        if isinstance(file, Inside):
            return shards.open_image(file.read_bytes()).size
        if not file.is_file():
            return None
        with open(file, "rb") as stream:
            return shards.open_image(stream.read(HEAD)).size
    except (OSError, ValueError):
        return None
