"""WebDataset shards: original image bytes, mask as PNG, metadata as JSON; the same samples give the same bytes.

A set is a directory: `shard-000000.tar`, ..., `manifest.parquet` (one row per image, with the byte range of
image, mask and tokens inside its tar, so any image is one read away), `rejects.parquet` (what was left out or flagged,
and why) and `meta.json`. The tars are ordinary WebDataset shards and read with `webdataset` too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from unforge import paths, s3
from unforge.types import Pixels, Sample

BLOCK = 512
SHARD_BYTES = 256 * 2**20
MAX_PIXELS = 120_000_000
"""Largest image that is decoded (pixels); above it, a file is taken for a decompression bomb."""

KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each EXIF orientation does to the stored pixels."""
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "TIFF": "tif", "BMP": "bmp", "WEBP": "webp"}

MANIFEST = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("mask_offset", pa.int64()),
        ("mask_size", pa.int64()),
        ("tokens_offset", pa.int64()),
        ("tokens_size", pa.int64()),
        ("extension", pa.string()),
        ("label", pa.int8()),
        ("kind", pa.string()),
        ("origin", pa.string()),
        ("source", pa.list_(pa.string())),
        ("unit", pa.string()),
        ("split", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("image_sha256", pa.string()),
        ("mask_sha256", pa.string()),
        ("tokens_sha256", pa.string()),
        ("phash", pa.int64()),
        ("mask_fraction", pa.float64()),
        ("data", pa.string()),
        ("meta", pa.string()),
    ]
)
ROWS = pa.schema(
    [(name, pa.string()) for name in ("source_image", "source_mask", "key", "kind", "label", "status", "reason")]
)
"""One row per file found; `rejects.parquet` holds the flagged and the rejected ones."""


def open_image(data: bytes) -> Image.Image:
    """The image in `data`, header read, pixels not yet decoded.

    Raises ValueError: not an image, a format we do not take, or more than `MAX_PIXELS` pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=sorted(set(EXTENSIONS) - {"MPO"}))  # MPO opens as JPEG
    except Image.DecompressionBombError as error:
        raise ValueError(f"decompression bomb: {error}") from None
    except Exception as error:  # Pillow's parsers raise anything from struct.error to SyntaxError on hostile bytes
        raise ValueError(
            f"not a readable image ({type(error).__name__}): formats are {', '.join(EXTENSIONS)}"
        ) from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{image.width}x{image.height} pixels: more than {MAX_PIXELS} are taken for a decompression bomb"
        )
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, 8 bit. 16-bit grey keeps its upper byte; palette and CMYK are converted; alpha is dropped."""
    if image.mode in ("I;16", "I;16B", "I;16L"):
        return Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels have no fixed range: convert the image to 8 or 16 bits")
        return Image.fromarray((values >> 8 if values.max() > 255 else values).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range: convert the image to 8 or 16 bits")
    return image.convert("RGB")


def decode_image(data: bytes, orientation: int = 1) -> np.ndarray:
    """Pixels of an image file, identical to Pillow's: (H, W, 3) uint8, RGB.

    `orientation` is the EXIF orientation to apply (1: as stored, which is what masks are drawn on).
    Raises ValueError with the reason when the file cannot be decoded whole.
    """
    image = open_image(data)
    try:
        turned = image.getexif().get(ORIENTATION, 1) if image.format == "TIFF" else 1  # Pillow turns TIFFs itself
        image.load()
        rgb = to_rgb(image)
    except ValueError:
        raise
    except Exception as error:  # a truncated or corrupt file: OSError, SyntaxError, struct.error, zlib.error
        raise ValueError(f"cannot be decoded ({type(error).__name__}: {error})") from None
    if turned != orientation:
        for turn in ({6: 8, 8: 6}.get(turned, turned), orientation):
            rgb = rgb.transpose(TURNS[turn]) if turn in TURNS else rgb
    return np.asarray(rgb)


def encode_png(array: np.ndarray) -> bytes:
    """PNG of an (H, W, 3) or (H, W) uint8 array, or of an (H, W) bool mask (0 and 255)."""
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


def encode_npy(array: np.ndarray) -> bytes:
    """npy file of an array."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def describe(image: np.ndarray, mask: np.ndarray | None) -> Pixels:
    """`Pixels` of an (H, W, 3) uint8 image and its (H, W) bool mask."""
    import imagehash

    bits = imagehash.phash(Image.fromarray(image)).hash
    value = int.from_bytes(np.packbits(bits.reshape(-1)).tobytes(), "big", signed=True)
    fraction = 0.0 if mask is None else float(mask.mean())
    return Pixels(width=image.shape[1], height=image.shape[0], phash=value, mask_fraction=fraction)


def write(
    path: Path,
    samples: Iterable[Sample],
    *,
    name: str,
    data: str,
    version: str,
    redistribute: bool = False,
    rejects: Iterable[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    inputs: Mapping[str, str] | None = None,
    max_bytes: int = SHARD_BYTES,
) -> None:
    """Write a set to the directory `path`, replacing it when complete.

    `data` is `real` or `stand_in`; `redistribute` says whether its images may be published; `rejects` are rows
    of `ROWS` and may be filled while `samples` is consumed. Raises ValueError on a repeated or malformed key and
    on a set without images.
    """
    from webdataset import ShardWriter

    rows: dict[str, dict[str, Any]] = {}
    with paths.writing(path) as folder:
        pattern = str(folder / "shard-%06d.tar")
        with ShardWriter(
            pattern, maxsize=max_bytes, verbose=0, encoder=False, mtime=0, user="unforge", group="unforge"
        ) as writer:
            shard, end = -1, 0
            for sample in samples:
                if not KEY.fullmatch(sample.key):
                    raise ValueError(f"{name}: key {sample.key!r} must match {KEY.pattern}")
                if sample.key in rows:
                    raise ValueError(f"{name}: key {sample.key!r} occurs twice")
                members = _members(sample)
                writer.write({"__key__": sample.key, **members})
                if writer.shard != shard:
                    shard, end = writer.shard, 0
                rows[sample.key], end = _row(sample, members, f"shard-{shard - 1:06d}.tar", end, data)
        if not rows:
            raise ValueError(f"{name}: no usable image; see the reasons in the rows of `unforge data check`")
        meta = paths.meta({"name": name, "data": data, "version": version, **(config or {})}, seed, inputs or {})
        paths.write_json(folder / "meta.json", meta)
        about = {"name": name, "data": data, "version": version, "redistribute": redistribute}
        info = {"unforge": json.dumps(about, sort_keys=True)}
        table = pa.Table.from_pylist([rows[key] for key in sorted(rows)], schema=MANIFEST.with_metadata(info))
        pq.write_table(table, folder / "manifest.parquet")
        write_rows(folder / "rejects.parquet", rejects)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of `ROWS` (values become strings), sorted."""
    values = [{name: str(row.get(name) if row.get(name) is not None else "") for name in ROWS.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(sorted(values, key=lambda r: tuple(r.values())), schema=ROWS), path)


def _members(sample: Sample) -> dict[str, bytes]:
    document = {
        "key": sample.key,
        "label": sample.label,
        "kind": sample.kind,
        "source": list(sample.source),
        "unit": sample.unit,
        "split": sample.split,
        "origin": sample.origin,
        "meta": dict(sample.meta),
    }
    members = {sample.extension: sample.image, "json": json.dumps(document, sort_keys=True).encode()}
    if sample.mask is not None:
        members["mask.png"] = sample.mask
    if sample.tokens is not None:
        members["tokens.npy"] = sample.tokens
    return members


def _row(sample: Sample, members: Mapping[str, bytes], shard: str, end: int, data: str) -> tuple[dict[str, Any], int]:
    """Manifest row of a sample whose members follow byte `end` of its tar, and where they end."""
    offsets = {}
    for member in sorted(members):
        offsets[member] = end + BLOCK
        end += BLOCK + -(-len(members[member]) // BLOCK) * BLOCK
    pixels = sample.pixels
    if pixels is None:
        mask = None if sample.mask is None else decode_mask(sample.mask)
        pixels = describe(decode_image(sample.image, int(sample.meta.get("orientation", 1))), mask)
    return {
        "key": sample.key,
        "shard": shard,
        "image_offset": offsets[sample.extension],
        "image_size": len(sample.image),
        "mask_offset": offsets.get("mask.png"),
        "mask_size": None if sample.mask is None else len(sample.mask),
        "tokens_offset": offsets.get("tokens.npy"),
        "tokens_size": None if sample.tokens is None else len(sample.tokens),
        "extension": sample.extension,
        "label": sample.label,
        "kind": sample.kind,
        "origin": sample.origin,
        "source": list(sample.source),
        "unit": sample.unit,
        "split": sample.split,
        "width": pixels.width,
        "height": pixels.height,
        "image_sha256": hashlib.sha256(sample.image).hexdigest(),
        "mask_sha256": None if sample.mask is None else hashlib.sha256(sample.mask).hexdigest(),
        "tokens_sha256": None if sample.tokens is None else hashlib.sha256(sample.tokens).hexdigest(),
        "phash": pixels.phash,
        "mask_fraction": pixels.mask_fraction,
        "data": data,
        "meta": json.dumps(dict(sample.meta), sort_keys=True),
    }, end


def decode_mask(data: bytes) -> np.ndarray:
    """(H, W) bool of a mask PNG as stored in a shard (0 and 255)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("L")) > 127


def _url(path: Path) -> str:
    """Where UNFORGE_SHARDS has the set. Raises FileNotFoundError when it is not set: nothing is fetched unasked."""
    place = os.environ.get("UNFORGE_SHARDS", "").rstrip("/")
    if not place:
        raise FileNotFoundError(f"{path} is not there: `dvc repro` makes it, `dvc pull {path}` fetches it")
    return f"{place}/{path.parent.name}/{path.name}"


class ShardSet:
    """A written set, read by key. Every key of the manifest is there exactly once.

    With UNFORGE_SHARDS (`s3://bucket/prefix`), a set that is not on this machine is read from there image by
    image: the same samples in the same order as from a disk, each checked against the manifest's hash.
    Raises FileNotFoundError when the set was not made, and says how to make it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.url = "" if (self.path / "manifest.parquet").is_file() else _url(self.path)
        data = self._bytes("manifest.parquet")
        try:
            self.manifest = pq.read_table(pa.BufferReader(data))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.url or self.path}/manifest.parquet is damaged: {error}") from None
        self.digest = hashlib.sha256(data).hexdigest()
        """SHA-256 of the manifest, which holds the hash of every image and mask."""
        info = json.loads((self.manifest.schema.metadata or {}).get(b"unforge", b"{}"))
        self.name: str = info["name"]
        self.data: str = info["data"]
        self.version: str = info["version"]
        self.redistribute: bool = info["redistribute"]

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Manifest rows by key, in the manifest's order."""
        return {row["key"]: row for row in self.manifest.to_pylist()}

    @property
    def keys(self) -> list[str]:
        return list(self.rows)

    def __len__(self) -> int:
        return int(self.manifest.num_rows)

    def row(self, key: str) -> dict[str, Any]:
        return self.rows[key]

    def _read(self, row: Mapping[str, Any], part: str) -> bytes:
        data = self._bytes(row["shard"], row[f"{part}_offset"], row[f"{part}_size"])
        if hashlib.sha256(data).hexdigest() != row[f"{part}_sha256"]:
            cure = "publish the set again" if self.url else "delete the set and run `dvc checkout` or `dvc repro`"
            place = f"{self.url or self.path}/{row['shard']}"
            raise ValueError(f"{place}: {part} of {row['key']} is not what was written; {cure}")
        return data

    def _bytes(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """A file of the set, or `size` bytes of it (fewer where it ends before)."""
        if self.url:
            return s3.read(f"{self.url}/{name}", offset, size)
        with open(self.path / name, "rb") as file:
            return file.read() if size is None else os.pread(file.fileno(), size, offset)

    def image_bytes(self, key: str) -> bytes:
        """The original file, checked against the manifest's hash."""
        return self._read(self.rows[key], "image")

    def image(self, key: str) -> np.ndarray:
        """(H, W, 3) uint8, RGB."""
        orientation = json.loads(self.rows[key]["meta"]).get("orientation", 1)
        return decode_image(self.image_bytes(key), int(orientation))

    def mask_bytes(self, key: str) -> bytes | None:
        """The mask's PNG; None for an authentic image."""
        row = self.rows[key]
        return None if row["mask_size"] is None else self._read(row, "mask")

    def mask(self, key: str) -> np.ndarray:
        """(H, W) bool; all False for an authentic image."""
        data = self.mask_bytes(key)
        if data is None:
            row = self.rows[key]
            return np.zeros((row["height"], row["width"]), dtype=bool)
        return decode_mask(data)

    def tokens(self, key: str) -> np.ndarray:
        """The tokens a generated image was decoded from. ValueError when they are not known."""
        row = self.rows[key]
        if row["tokens_size"] is None:
            raise ValueError(f"{self.url or self.path}: the tokens of {key} are not known")
        tokens: np.ndarray = np.load(io.BytesIO(self._read(row, "tokens")), allow_pickle=False)
        return tokens
