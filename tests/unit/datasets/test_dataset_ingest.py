"""Hostile and broken files: each handled or rejected with a reason, the rest goes on, nothing is lost."""

from __future__ import annotations

import hashlib
import struct
import types
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.unit.datasets.dataset_trees import SIZE, encoded, picture, square
from unforge import shards
from unforge.datasets import generic, ingest
from unforge.types import Found


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60000 x 60000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    import io

    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def with_orientation(array: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(array), "JPEG", exif=exif, quality=95)


def run(root: Path, **options: object) -> tuple[dict[str, object], dict[str, tuple[str, str]]]:
    """Samples by key, and (status, reason) by image name."""
    rows: list[dict] = []
    samples = {sample.key: sample for sample in ingest.read(generic, root, rows, **options)}
    assert len(rows) == sum(Counter(row["status"] for row in rows).values())
    return samples, {Path(row["source_image"]).name: (row["status"], row["reason"]) for row in rows}


def test_every_kind_of_bad_file_is_rejected_with_its_reason_and_the_rest_goes_on(tree):
    jpeg = encoded(picture("t"), "JPEG")
    names = ("bomb.png", "empty.png", "text.jpg", "truncated.jpg", "small.png", "black.png", "badmask.png")
    root = tree(
        "images/good.png",
        "masks/good.png",
        *(f"masks/{name.split('.')[0]}.png" for name in names if name not in ("small.png", "black.png", "badmask.png")),
        contents={
            "images/bomb.png": bomb(),
            "images/empty.png": b"",
            "images/text.jpg": b"this is not an image",
            "images/truncated.jpg": jpeg[: len(jpeg) // 2],
            "images/small.png": picture("small"),
            "masks/small.png": square((24, 16)),
            "images/black.png": picture("black"),
            "masks/black.png": np.zeros(SIZE[::-1], np.uint8),
            "images/badmask.png": picture("badmask"),
            "masks/badmask.png": b"no mask",
            "images/copy.png": encoded(picture("images/good.png"), "PNG"),
            "images/animation.gif": saved(Image.fromarray(picture("g")), "GIF"),
        },
    )
    samples, rows = run(root)
    rejected = {name: reason for name, (status, reason) in rows.items() if status == "rejected"}
    expected = {
        "bomb.png": "decompression bomb",
        "empty.png": "is empty",
        "text.jpg": "not a readable image",
        "truncated.jpg": "cannot be decoded",
        "small.png": "mask of another size: 24x16 pixels, the image 48x32",
        "black.png": "empty mask on a tampered image",
        "badmask.png": "mask: not a readable image",
        "animation.gif": "not a readable image",
    }
    # of the two files with the same bytes the first by path wins
    assert rejected.pop("good.png") == "duplicate: the same bytes as images/copy.png"
    assert set(rejected) == set(expected)
    for name, words in expected.items():
        assert words in rejected[name], name
    assert set(samples) == {"copy"}
    assert len(rows) == 10


def test_unreadable_and_missing_files_are_rows(tree):
    root = tree("images/folder.png/x.txt.png", "images/a.png", contents={"pairs.csv": "image,mask\nimages/a.png,\n"})
    (root / "images" / "dangling.png").symlink_to(root / "nowhere.png")
    found = [
        Found(key=name, image=root / "images" / name, mask=None, label=0, kind="authentic", source=(name,))
        for name in ("a.png", "dangling.png", "folder.png", "gone.png")
    ]
    rows: list[dict] = []
    samples = list(ingest.read(types.SimpleNamespace(find=lambda _: found), root, rows))
    assert [sample.key for sample in samples] == ["a.png"]
    assert [row["status"] for row in rows] == ["ok", "rejected", "rejected", "rejected"]
    assert all("not a regular file" in row["reason"] for row in rows[1:])


def test_odd_pixel_formats_are_kept_byte_for_byte_and_flagged(tree):
    rgb = Image.fromarray(picture("odd"))
    grey16 = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[::-1]) * 40
    contents = {
        "images/cmyk.jpg": saved(rgb.convert("CMYK"), "JPEG"),
        "images/deep.png": saved(Image.fromarray(grey16), "PNG"),
        "images/palette.png": saved(rgb.convert("P"), "PNG"),
        "images/alpha.png": saved(rgb.convert("RGBA"), "PNG"),
        "images/lie.png": saved(rgb, "JPEG"),
        "images/frames.tif": saved(rgb, "TIFF", save_all=True, append_images=[rgb]),
        "images/plain.tif": saved(rgb, "TIFF"),
    }
    root = tree(*(f"masks/{Path(name).stem}.png" for name in contents), contents=contents)
    samples, rows = run(root)
    words = {
        "cmyk.jpg": "CMYK",
        "deep.png": "16-bit",
        "palette.png": "palette",
        "alpha.png": "alpha",
        "lie.png": "content is JPEG",
        "frames.tif": "frames",
    }
    for name, word in words.items():
        assert rows[name][0] == "flagged", name
        assert word in rows[name][1]
    assert rows["plain.tif"] == ("ok", "")
    assert samples["lie"].extension == "jpg"
    for name, data in contents.items():
        sample = samples[Path(name).stem]
        assert sample.image == data
        assert (sample.pixels.width, sample.pixels.height) == SIZE
        assert (shards.decode_mask(sample.mask) == (square() > 0)).all()
    assert (shards.decode_image(samples["deep"].image)[..., 0] == grey16 >> 8).all()


def test_full_masks_are_flagged(tree):
    root = tree("images/a.png", contents={"masks/a.png": np.full(SIZE[::-1], 255, np.uint8)})
    samples, rows = run(root)
    assert rows["a.png"][0] == "flagged"
    assert samples["a"].pixels.mask_fraction == 1


@pytest.mark.parametrize(
    ("orientation", "mask_size", "applied"), [(6, (32, 48), 6), (6, (48, 32), 1), (3, (48, 32), 1)]
)
def test_exif_orientation_is_applied_only_where_the_mask_fits_only_so(tree, orientation, mask_size, applied):
    root = tree(
        contents={"images/a.jpg": with_orientation(picture("a"), orientation), "masks/a.png": square(mask_size)},
    )
    samples, rows = run(root)
    assert rows["a.jpg"][0] == "flagged"
    assert "EXIF orientation" in rows["a.jpg"][1]
    assert samples["a"].meta.get("orientation", 1) == applied
    assert (samples["a"].pixels.width, samples["a"].pixels.height) == mask_size


def test_orientation_survives_the_shard(tree, tmp_path):
    root = tree(contents={"images/a.jpg": with_orientation(picture("a"), 6), "masks/a.png": square((32, 48))})
    rows: list[dict] = []
    shards.write(
        tmp_path / "out",
        ingest.read(generic, root, rows),
        name="x",
        data="real",
        version="1",
        rejects=ingest.rejects(rows),
    )
    written = shards.ShardSet(tmp_path / "out")
    assert written.image("a").shape[:2] == written.mask("a").shape == (48, 32)
    stored = np.asarray(Image.open(root / "images" / "a.jpg"))
    assert (written.image("a") == np.rot90(stored, -1)).all()
    assert written.image_bytes("a") == (root / "images" / "a.jpg").read_bytes()


def test_equal_keys_stay_apart_and_names_need_not_be_text(tree):
    root = tree("a/images/x.png", "b/images/x.png", contents={"images/\udce4.png": picture("umlaut")})
    samples, rows = run(root)
    assert len(samples) == 3
    assert all(shards.KEY.fullmatch(key) for key in samples)
    assert "\\udce4.png" in rows
    assert {sample.unit for sample in samples.values()} == set(samples)


def test_a_rejected_image_does_not_make_its_copy_a_duplicate(tree):
    data = encoded(picture("same"), "PNG")
    root = tree(
        "masks/b.png",
        contents={"images/a.png": data, "masks/a.png": square((8, 8)), "images/b.png": data},
    )
    _, rows = run(root)
    assert rows["a.png"][0] == "rejected"
    assert rows["b.png"][0] == "ok"


def fakes(counts: dict[tuple[str, str], int]) -> list[Found]:
    return [
        Found(
            key=f"{split}-{kind}-{number}",
            image=Path(f"{split}/{kind}/{number}.png"),
            mask=None,
            label=0,
            kind=kind,
            source=("x",),
            split=split,
        )
        for (split, kind), count in counts.items()
        for number in range(count)
    ]


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["train", "val", "test"]), st.sampled_from(["authentic", "splice", "copy_move"])),
        st.integers(1, 40),
        min_size=1,
    ),
    st.integers(1, 100),
    st.randoms(),
)
def test_limit_is_met_exactly_by_shares_and_does_not_depend_on_order(counts, limit, random):
    found = fakes(counts)
    chosen = ingest.select(found, limit, 0)
    total = sum(counts.values())
    if total <= limit:
        assert chosen == [(total, found)]
        return
    assert sum(wanted for wanted, _ in chosen) == limit
    for wanted, candidates in chosen[:-1]:
        exact = limit * len(candidates) / total
        assert wanted <= len(candidates)
        assert exact - len(counts) <= wanted <= exact + 1
        if limit >= len(counts):
            assert wanted >= 1
    shuffled = list(found)
    random.shuffle(shuffled)
    assert ingest.select(shuffled, limit, 0) == chosen
    assert [c[1] for c in ingest.select(found, limit, 1)] != [c[1] for c in chosen] or total < 8


def test_limit_replaces_unusable_images(tree):
    contents = {f"images/{number}.png": picture(f"{number:02d}") for number in range(8)}
    for number in range(4):
        contents[f"images/{number}.png"] = b"broken"
    root = tree(contents=contents)
    samples, _ = run(root, limit=4)
    assert set(samples) == {"4", "5", "6", "7"}
    fewer, _ = run(root, limit=2)
    assert len(fewer) == 2
    assert set(fewer) <= set(samples)


def test_samples_of_an_added_set_need_a_real_one(tmp_path):
    (tmp_path / "SOURCE.json").write_text('{"source": "stand_in"}')
    with pytest.raises(ValueError, match="unforge data add"):
        list(ingest.samples(tmp_path, []))


def test_same_bytes_same_hash_in_the_manifest(tree, tmp_path):
    root = tree("images/a.png", "masks/a.png", "authentic/b.jpg")
    rows: list[dict] = []
    shards.write(tmp_path / "out", ingest.read(generic, root, rows), name="x", data="real", version="1")
    manifest = {row["key"]: row for row in shards.ShardSet(tmp_path / "out").manifest.to_pylist()}
    for key, path in (("a", "images/a.png"), ("b", "authentic/b.jpg")):
        assert manifest[key]["image_sha256"] == hashlib.sha256((root / path).read_bytes()).hexdigest()
    assert manifest["a"]["mask_fraction"] == pytest.approx(square().astype(bool).mean())
    assert manifest["b"]["label"] == 0
