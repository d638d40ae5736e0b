"""From rows to samples: whole videos, frames by policy, original bytes, fakes without masks."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.datasets.dataset_trees import SIZE, encoded, picture, square
from tests.unit.videos.made import frames
from tests.unit.videos.test_deepfakebench import ABOUT
from unforge import shards
from unforge.types import Sample
from unforge.videos import deepfakebench, reading

MODULE: Any = types.SimpleNamespace(find=lambda root: deepfakebench.find(ABOUT, root))


def read(root: Path, **options: Any) -> tuple[list[Sample], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    return list(reading.read(MODULE, root, rows, **options)), rows


def test_original_bytes_units_and_labels_with_and_without_masks(tree: Any) -> None:
    root = tree(*frames("real/frames/a"), *frames("fake/frames/b_x"), "fake/masks/b_x/000.png")
    samples, rows = read(root)
    assert [s.image for s in samples] == [(root / row["source_image"]).read_bytes() for row in rows]
    assert [(s.unit, s.label, s.kind, s.mask is None) for s in samples] == [
        ("toy/original/a", 0, "authentic", True), ("toy/original/a", 0, "authentic", True),
        ("toy/Swap/b_x", 1, "unknown", False), ("toy/Swap/b_x", 1, "unknown", True),
    ]  # fmt: skip
    assert samples[2].mask is not None
    assert (shards.decode_mask(samples[2].mask) == (square() > 0)).all()
    assert [row["status"] for row in rows] == ["ok"] * 4


@pytest.mark.parametrize(("policy", "picked"), [("evenly", [0, 3, 7]), ("first", [0, 1, 2])])
def test_the_policy_chooses_frames(tree: Any, policy: str, picked: list[int]) -> None:
    samples, rows = read(tree(*frames("real/frames/a", 8)), frames=3, policy=policy)
    assert [int(s.meta["frame"]) for s in samples] == picked
    assert len(rows) == 3


def test_a_limit_takes_whole_videos_of_every_kind_and_the_same_ones_again(tree: Any) -> None:
    names = [name for i in range(6) for name in (*frames(f"real/frames/r{i}", 4), *frames(f"fake/frames/f{i}", 4))]
    root = tree(*names)
    samples, _ = read(root, frames=2, limit=8)
    assert len(samples) == 8
    units = [s.unit for s in samples]
    assert sorted(units.count(unit) for unit in set(units)) == [2, 2, 2, 2]
    assert sum(s.label for s in samples) == 4
    assert [s.key for s in read(root, frames=2, limit=8)[0]] == [s.key for s in samples]
    assert {s.unit for s in read(root, frames=2, limit=8, seed=1)[0]} != set(units)


def test_broken_frames_are_rejected_with_a_reason(tree: Any) -> None:
    same = encoded(picture("same"), "PNG")
    root = tree(*frames("real/frames/a"), contents={
        "real/frames/a/002.png": b"", "real/frames/a/003.png": b"not an image", "fake/frames/b_x/000.png": same,
        "fake/frames/c_x/000.png": same, "real/frames/d/000.png": same[:-40], "fake/frames/b_x/001.png": same,
    })  # fmt: skip
    samples, rows = read(root)
    bad = {row["source_image"]: row["reason"] for row in rows if row["status"] == "rejected"}
    assert set(bad) == {
        "real/frames/a/002.png", "real/frames/a/003.png", "fake/frames/c_x/000.png", "real/frames/d/000.png",
    }  # fmt: skip
    assert bad["fake/frames/c_x/000.png"] == "duplicate: the same bytes as fake/frames/b_x/000.png"
    assert len(samples) == 4  # frames of one video may be equal


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros(SIZE[::-1], np.uint8), "marks nothing"),
        (square((40, 40)), "40x40 pixels, the frame 48x32"),
        (b"nothing", "mask left out"),
    ],
)
def test_a_useless_mask_is_left_out_and_the_frame_stays(tree: Any, mask: Any, said: str) -> None:
    samples, rows = read(tree("fake/frames/b_x/000.png", contents={"fake/masks/b_x/000.png": mask}))
    assert (samples[0].label, samples[0].mask) == (1, None)
    assert rows[0]["status"] == "flagged"
    assert said in rows[0]["reason"]


def test_a_link_out_of_the_set_is_no_frame(tree: Any, tmp_path: Path) -> None:
    root = tree(*frames("real/frames/a", 1))
    (root / "real/frames/a/001.png").symlink_to("/dev/zero")
    samples, rows = read(root)
    assert len(samples) == 1
    assert "not a regular file" in rows[-1]["reason"]


def test_shards_keep_the_unit(tree: Any, tmp_path: Path) -> None:
    root = tree(*frames("real/frames/a"), *frames("fake/frames/b_x"))
    samples, _ = read(root)
    shards.write(tmp_path / "out", samples, name="toy", data="real", version="1")
    kept = shards.ShardSet(tmp_path / "out")
    assert {row["unit"] for row in kept.rows.values()} == {"toy/original/a", "toy/Swap/b_x"}
    assert not any(kept.mask(key).any() for key in kept.rows)


def test_options_are_the_values_of_the_profile() -> None:
    assert reading.options({"images": 9, "size": 128}) == {"limit": 9}
    scale = {"images": 9, "size": 128, "frames": 4, "policy": "first"}
    assert reading.options(scale) == {"limit": 9, "frames": 4, "policy": "first"}
