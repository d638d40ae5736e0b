"""Shards against webdataset, tarfile and Pillow."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from unforge import shards
from unforge.types import Pixels, Sample

FORMATS = {"jpg": "JPEG", "png": "PNG", "tif": "TIFF", "bmp": "BMP", "webp": "WEBP"}


def picture(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def sample(index: int, **changes: Any) -> Sample:
    """An image in one of the formats; every third is authentic."""
    extension = list(FORMATS)[index % len(FORMATS)]
    mask = np.zeros((40, 56), bool)
    mask[3 : 5 + index % 20, 7:30] = True
    values: dict[str, Any] = {
        "key": f"im-{index:02d}",
        "image": encoded(Image.fromarray(picture(index)), FORMATS[extension]),
        "extension": extension,
        "mask": shards.encode_png(mask) if index % 3 else None,
        "label": int(index % 3 > 0),
        "kind": "splice" if index % 3 else "authentic",
        "source": (f"p{index}", f"q{index}"),
        "unit": f"im-{index:02d}",
        "split": "test",
        "meta": {"z": index, "a": [1, 2]},
    }
    return Sample(**{**values, **changes})


SAMPLES = [sample(i) for i in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]
REJECTS = [{"source_image": name, "status": "rejected", "reason": "broken", "label": 1} for name in ("b.png", "a.png")]


def write(path: Path, samples: Any = SAMPLES, **options: Any) -> shards.ShardSet:
    shards.write(path, samples, **{"name": "toy", "data": "stand_in", "version": "1", **options})
    return shards.ShardSet(path)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    one = write(
        tmp_path / "one", rejects=REJECTS, config={"b": 1, "a": 2}, inputs={"y": "1", "x": "2"}, max_bytes=20_000
    )
    options = {
        "rejects": REJECTS[::-1],
        "config": {"a": 2, "b": 1},
        "inputs": {"x": "2", "y": "1"},
        "max_bytes": 20_000,
    }
    two = write(tmp_path / "two", **options)
    assert files(one.path) == files(two.path)
    assert (one.path.stat().st_mode & 0o777) == 0o755
    assert len(list(one.path.glob("shard-*.tar"))) > 2  # one full shard after the other
    assert str(tmp_path) not in b"".join(files(one.path).values()).decode("latin-1")
    assert one.digest == two.digest == hashlib.sha256((one.path / "manifest.parquet").read_bytes()).hexdigest()
    assert pq.read_table(one.path / "rejects.parquet")["source_image"].to_pylist() == ["a.png", "b.png"]


def test_tar_members_have_no_time_and_no_person(tmp_path: Path) -> None:
    write(tmp_path / "set")
    with tarfile.open(tmp_path / "set" / "shard-000000.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members[:5]] == ["im-03.bmp", "im-03.json", "im-01.json", "im-01.mask.png", "im-01.png"]
    assert {(m.mtime, m.uname, m.gname, m.uid, m.gid, m.mode) for m in members} == {
        (0, "unforge", "unforge", 0, 0, 0o444)
    }


def test_the_manifest_points_at_the_bytes(tmp_path: Path) -> None:
    shard_set = write(tmp_path / "set", max_bytes=20_000)
    expected = {s.key: s for s in SAMPLES}
    assert shard_set.keys == sorted(expected)
    assert len(shard_set) == len(expected)
    tars = {path.name: tarfile.open(path) for path in shard_set.path.glob("*.tar")}  # noqa: SIM115
    for key, made in expected.items():
        row = shard_set.row(key)
        member = tars[row["shard"]].getmember(f"{key}.{made.extension}")
        assert (row["image_offset"], row["image_size"]) == (member.offset_data, member.size)
        assert shard_set.image_bytes(key) == made.image
        assert shard_set.mask_bytes(key) == made.mask
        if made.mask is not None:
            mask = tars[row["shard"]].getmember(f"{key}.mask.png")
            assert (row["mask_offset"], row["mask_size"]) == (mask.offset_data, mask.size)
            np.testing.assert_array_equal(shard_set.mask(key), np.asarray(Image.open(io.BytesIO(made.mask))) == 255)
            assert row["mask_fraction"] == pytest.approx(shard_set.mask(key).mean())
        else:
            assert (row["mask_offset"], row["mask_size"], row["mask_sha256"], row["mask_fraction"]) == (
                None,
                None,
                None,
                0,
            )
            assert shard_set.mask(key).shape == (40, 56)
            assert not shard_set.mask(key).any()
        pixels = np.asarray(Image.open(io.BytesIO(made.image)).convert("RGB"))
        np.testing.assert_array_equal(shard_set.image(key), pixels)
        assert (row["height"], row["width"], row["data"], row["source"]) == (40, 56, "stand_in", list(made.source))
        assert json.loads(row["meta"]) == {"a": [1, 2], "z": made.meta["z"]}
    for tar in tars.values():
        tar.close()
    assert (shard_set.name, shard_set.data, shard_set.version, shard_set.redistribute) == (
        "toy",
        "stand_in",
        "1",
        False,
    )


def test_webdataset_reads_every_image_once(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    shard_set = write(tmp_path / "set", max_bytes=20_000)
    urls = [str(path) for path in sorted(shard_set.path.glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    expected = {s.key: s for s in SAMPLES}
    assert sorted(item["__key__"] for item in read) == sorted(expected)
    for item in read:
        made = expected[item["__key__"]]
        assert item[made.extension] == made.image
        assert item.get("mask.png") == made.mask
        document = json.loads(item["json"])
        assert (document["key"], document["label"], document["kind"], document["meta"]["z"]) == (
            made.key, made.label, made.kind, made.meta["z"],
        )  # fmt: skip


def test_given_pixels_are_taken_as_they_are(tmp_path: Path) -> None:
    pixels = Pixels(width=3, height=2, phash=-5, mask_fraction=0.25)
    row = write(tmp_path / "set", [sample(1, image=b"not decoded", pixels=pixels)]).row("im-01")
    assert (row["width"], row["height"], row["phash"], row["mask_fraction"]) == (3, 2, -5, 0.25)


def test_the_perceptual_hash_is_imagehash_s(tmp_path: Path) -> None:
    import imagehash

    found = shards.describe(picture(1), None)
    assert f"{found.phash & (2**64 - 1):016x}" == str(imagehash.phash(Image.fromarray(picture(1))))


def test_rejects_may_be_filled_while_samples_are_consumed(tmp_path: Path) -> None:
    rejects: list[dict[str, Any]] = []

    def samples() -> Iterator[Sample]:
        yield sample(1)
        rejects.append({"source_image": "late.png", "status": "rejected", "reason": "empty"})

    write(tmp_path / "set", samples(), rejects=rejects)
    rows = pq.read_table(tmp_path / "set" / "rejects.parquet").to_pylist()
    assert [(row["source_image"], row["reason"], row["source_mask"]) for row in rows] == [("late.png", "empty", "")]


@pytest.mark.parametrize("old", [False, True])
def test_a_failing_source_leaves_what_was_there(tmp_path: Path, old: bool) -> None:
    if old:
        write(tmp_path / "set", [sample(2)])
    before = {path.name: files(path) for path in tmp_path.iterdir()}

    def samples() -> Iterator[Sample]:
        yield sample(1)
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        write(tmp_path / "set", samples())
    assert {path.name: files(path) for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "ä", "a b", "x" * 81, "a\n"])
def test_a_malformed_key_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="must match"):
        write(tmp_path / "set", [sample(1, key=key)])
    assert list(tmp_path.iterdir()) == []


def test_a_repeated_key_and_an_empty_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'im-01' occurs twice"):
        write(tmp_path / "set", [sample(1), sample(2), sample(1)])
    with pytest.raises(ValueError, match="no usable image"):
        write(tmp_path / "set", [])


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    shard_set = write(tmp_path / "set")
    tar = shard_set.path / "shard-000000.tar"
    for key, part, read in (("im-01", "image", shard_set.image), ("im-04", "mask", shard_set.mask)):
        data = bytearray(tar.read_bytes())
        data[shard_set.row(key)[f"{part}_offset"] + 20] ^= 1
        tar.write_bytes(data)
        with pytest.raises(ValueError, match=rf"shard-000000\.tar: {part} of {key} is not what was written.*dvc"):
            read(key)
    assert shard_set.image("im-02").shape == (40, 56, 3)
    tar.write_bytes(tar.read_bytes()[: shard_set.row("im-07")["image_offset"] + 5])
    with pytest.raises(ValueError, match="im-07 is not what was written"):
        shard_set.image("im-07")


def test_a_missing_set_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not there: `dvc repro` makes it, `dvc pull .*` fetches it"):
        shards.ShardSet(tmp_path / "nothing")


RGB = Image.fromarray(picture(0))
PILLOW = {
    "jpeg": encoded(RGB, "JPEG", quality=71, subsampling=2),
    "progressive": encoded(RGB, "JPEG", progressive=True),
    "grey jpeg": encoded(RGB.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(RGB.convert("CMYK"), "JPEG"),
    "png": encoded(RGB, "PNG"),
    "palette": encoded(RGB.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "palette with transparency": encoded(RGB.convert("P"), "PNG", transparency=3),
    "one bit": encoded(RGB.convert("1"), "PNG"),
    "alpha": encoded(Image.fromarray(np.dstack([picture(0), picture(1)[..., :1]])), "PNG"),
    "grey alpha": encoded(RGB.convert("LA"), "PNG"),
    "tiff": encoded(RGB, "TIFF"),
    "tiff lzw": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "cmyk tiff": encoded(RGB.convert("CMYK"), "TIFF"),
    "lab tiff": encoded(RGB.convert("YCbCr"), "TIFF"),
    "bmp": encoded(RGB, "BMP"),
    "webp": encoded(RGB, "WEBP", quality=60),
    "webp lossless": encoded(RGB, "WEBP", lossless=True),
}


@pytest.mark.parametrize("name", PILLOW)
def test_pixels_are_pillow_s(name: str) -> None:
    expected = np.asarray(Image.open(io.BytesIO(PILLOW[name])).convert("RGB"))
    found = shards.decode_image(PILLOW[name])
    assert (found.dtype, found.shape) == (np.uint8, (40, 56, 3))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_upper_byte(format: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (40, 56), dtype=np.uint16)
    found = shards.decode_image(encoded(Image.fromarray(values), format))
    np.testing.assert_array_equal(found, np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=2))


def test_thirty_two_bits_are_read_as_sixteen_or_refused() -> None:
    values = np.array([[0, 255, 256, 65535]], np.int32)
    found = shards.decode_image(encoded(Image.fromarray(values), "TIFF"))
    assert found[0, :, 0].tolist() == [0, 0, 1, 255]
    for hostile in ([[0, 65536]], [[-1, 5]]):
        with pytest.raises(ValueError, match="convert the image to 8 or 16 bits"):
            shards.decode_image(encoded(Image.fromarray(np.array(hostile, np.int32)), "TIFF"))
    with pytest.raises(ValueError, match="floating-point"):
        shards.decode_image(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_exif(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(shards.decode_image(data, orientation), expected)
    # as stored; of a TIFF, Pillow itself knows only the turned pixels
    stored = picture(0) if format == "TIFF" else np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(shards.decode_image(data), stored)


def bomb() -> bytes:
    """A PNG of 20000 x 20000 pixels by its header alone."""
    data = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    header = (20000).to_bytes(4, "big") * 2 + data[24:29]
    data[16:29] = header
    data[29:33] = zlib.crc32(b"IHDR" + bytes(header)).to_bytes(4, "big")
    return bytes(data)


HOSTILE = {
    "truncated jpeg": (PILLOW["jpeg"][: len(PILLOW["jpeg"]) // 2], "cannot be decoded"),
    "truncated png": (PILLOW["png"][:2000], "cannot be decoded"),
    "truncated tiff": (PILLOW["tiff"][: len(PILLOW["tiff"]) // 2], "cannot be decoded|not a readable image"),
    "header only": (PILLOW["jpeg"][:4], "not a readable image"),
    "bomb": (bomb(), "decompression bomb"),
    "text": (b"<html>not found</html>", "not a readable image"),
    "empty": (b"", "not a readable image"),
    "another format": (encoded(RGB, "GIF"), "not a readable image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a readable image"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_a_reason(name: str) -> None:
    data, reason = HOSTILE[name]
    with pytest.raises(ValueError, match=reason):
        shards.decode_image(data)


def test_png_of_an_image_and_of_a_mask() -> None:
    mask = picture(2)[..., 0] > 99
    for array, expected in (
        (picture(1), picture(1)),
        (picture(1)[..., 0], picture(1)[..., 0]),
        (mask, mask * np.uint8(255)),
    ):
        data = shards.encode_png(array)
        assert data == shards.encode_png(array.copy())
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)
    np.testing.assert_array_equal(shards.decode_mask(shards.encode_png(mask)), mask)
