"""Perceptual hash search against brute force, and leaks between sets."""

from __future__ import annotations

import io
import json
import time
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from tests.unit.datasets.dataset_trees import encoded
from unforge import shards
from unforge.datasets import catnet, near_duplicates
from unforge.types import Sample

HASHES = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=0, max_size=12)


@settings(max_examples=100, deadline=None)
@given(
    HASHES, HASHES, st.lists(st.tuples(st.integers(0, 11), st.sets(st.integers(0, 63), max_size=6))), st.integers(0, 6)
)
def test_pairs_are_those_of_brute_force(left, right, flips, distance):
    for place, bits in flips:  # make some that are close
        if place < len(left):
            value = left[place] & (2**64 - 1)
            for bit in bits:
                value ^= 1 << bit
            right = [*right, value - 2**64 if value >= 2**63 else value]
    truth = [
        (i, j, bin((a ^ b) & (2**64 - 1)).count("1"))
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if bin((a ^ b) & (2**64 - 1)).count("1") <= distance
    ]
    i, j, apart = near_duplicates.pairs(np.array(left, np.int64), np.array(right, np.int64), distance)
    assert list(zip(i.tolist(), j.tolist(), apart.tolist(), strict=True)) == truth


def test_search_among_many_is_fast():
    rng = np.random.default_rng(0)
    many = rng.integers(-(2**63), 2**63 - 1, 200_000, dtype=np.int64)
    few = rng.integers(-(2**63), 2**63 - 1, 5_000, dtype=np.int64)
    few[:3] = many[:3] ^ np.int64(0b1011)
    start = time.perf_counter()
    i, j, apart = near_duplicates.pairs(many, few)
    assert time.perf_counter() - start < 20
    assert list(zip(i, j, apart, strict=True)) == [(0, 0, 3), (1, 1, 3), (2, 2, 3)]


def test_distance_out_of_range():
    with pytest.raises(ValueError, match="0 to 31"):
        near_duplicates.pairs(np.zeros(1, np.int64), np.zeros(1, np.int64), 40)


def scene(seed: int) -> Image.Image:
    """A smooth random picture, 96 x 96."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)


def png(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def shard_set(path: Path, images: dict[str, tuple[bytes, str]], **fields: object) -> shards.ShardSet:
    def sample(key: str, data: bytes, source: str) -> Sample:
        values: dict = {"kind": "authentic", "split": "train", "meta": {}, **fields}
        values = {name: value(key) if callable(value) else value for name, value in values.items()}
        extension = "jpg" if data[:2] == b"\xff\xd8" else "png"
        return Sample(
            key=key, image=data, extension=extension, mask=None, label=0, source=(source,), unit=key, **values
        )

    shards.write(path, (sample(k, *v) for k, v in images.items()), name=path.name, data="real", version="1")
    return shards.ShardSet(path)


def test_leaks_are_found_through_compression_and_flat_pictures_are_not(tmp_path):
    flat = {f"flat{value}": (encoded(np.full((64, 64, 3), value, np.uint8), "PNG"), f"f{value}") for value in (10, 200)}
    train = shard_set(
        tmp_path / "train",
        {
            "other": (png(scene(1)), "s1"),
            "compressed": (png(scene(2).filter(ImageFilter.GaussianBlur(0.6)), "JPEG", quality=70), "s2"),
            "photograph": (png(scene(3)), "shared"),
            "bytes": (png(scene(5)), "s5"),
            "flat10": flat["flat10"],
        },
    )
    test = shard_set(
        tmp_path / "test",
        {
            "x": (png(scene(2)), "t2"),
            "y": (png(scene(4)), "shared"),
            "z": (png(scene(5)), "t5"),
            "flat200": flat["flat200"],
        },
        split="test",
    )
    rows = near_duplicates.leaks({"a": train}, {"b": test}).to_pylist()
    assert [(row["key"], row["test_key"], row["reason"]) for row in rows] == [
        ("bytes", "z", "same bytes"),
        ("compressed", "x", "near-duplicate"),
        ("photograph", "y", "same photograph"),
    ]
    assert 0 <= rows[1]["distance"] <= near_duplicates.DISTANCE


def test_members_of_a_protocol_are_without_leaks_and_keep_their_parts(tmp_path):
    protocol = types.SimpleNamespace(MEMBERS={"one": 10, "two/sp": 5, "two/cm": 5}, VALIDATION="val")
    one = shard_set(
        tmp_path / "one",
        {str(n): (png(scene(n)), f"o{n}") for n in range(6)},
        split=lambda key: {"0": "val", "1": "test"}.get(key, "train"),
    )
    two = shard_set(
        tmp_path / "two",
        {
            f"{part}{n}": (png(scene(hash_ * 50 + n + 100)), f"{part}{n}")
            for hash_, part in enumerate(("cm", "sp"))
            for n in range(3)
        },
        meta=lambda key: {"part": key[:2]},
    )
    test = shard_set(tmp_path / "test", {"leak": (png(scene(3)), "t"), "val": (png(scene(0)), "t0")})
    table, leaked = near_duplicates.members(protocol, {"one": one, "two": two, "more": test}, {"bench": test})
    rows = {(row["member"], row["key"]): row["split"] for row in table.to_pylist()}
    assert rows == {
        ("one", "2"): "train",
        ("one", "4"): "train",
        ("one", "5"): "train",
        **{(f"two/{part}", f"{part}{n}"): "train" for part in ("cm", "sp") for n in range(3)},
    }
    assert leaked["key"].to_pylist() == ["0", "3"]
    with pytest.raises(ValueError, match="two"):
        near_duplicates.members(protocol, {"one": one}, {})
    with pytest.raises(ValueError, match="no training images left for one"):
        near_duplicates.members(protocol, {"one": test, "two": two}, {"bench": test})


def test_stand_ins_without_parts_are_dealt_out_by_kind(tmp_path):
    kinds = ("splice", "copy_move", "authentic")
    stand_in = shard_set(
        tmp_path / "tampcoco",
        {f"{n:03d}": (png(scene(n)), f"s{n}") for n in range(60)},
        kind=lambda key: kinds[int(key) % 3],
    )
    protocol = types.SimpleNamespace(
        MEMBERS={name: count for name, count in catnet.MEMBERS.items() if name.startswith("tampcoco")}, VALIDATION="val"
    )
    table, _ = near_duplicates.members(protocol, {"tampcoco": stand_in}, {})
    assert len(table) == 60
    member = {row["key"]: row["member"] for row in table.to_pylist()}
    for key, name in member.items():
        if int(key) % 3 == 0:
            assert name == "tampcoco/sp"
        if int(key) % 3 == 1:
            assert name != "tampcoco/sp"
    assert set(member.values()) == set(protocol.MEMBERS)
    assert json.dumps(table.to_pylist())
