"""Clips: what is in all frames alike, what is new in each, and that only the region tells a fake."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from typing import Any

import cv2
import numpy as np
import pytest

from tests.unit.forgeries.conftest import Pool, textured
from unforge import seeds, shards, videos
from unforge.forgeries.steps import clips
from unforge.forgeries.steps.photographs import Photographs
from unforge.types import Sample
from unforge.videos import Clips, Manipulation

SWAP = Manipulation(name="Swap", how="swap", area=(0.1, 0.2), feather=(1, 2))
WARP = Manipulation(name="Warp", how="warp", area=(0.1, 0.2))
RECIPE = Clips(manipulations=(SWAP, WARP), split="test", quality=(85, 95))
SIZE = 64


class Flat(Pool):
    """Photographs of nothing but grey."""

    def image(self, key: str) -> np.ndarray:
        return np.full((self.side, self.side + 20, 3), 128, np.uint8)


def made(pool: Any, count: int = 24, seed: int = 0, recipe: Clips = RECIPE, frames: int = 3) -> list[Sample]:
    return list(clips.clips(recipe, pool, count, SIZE, seed, "toy", frames))


def test_counts_labels_units_and_sources(pool: Any) -> None:
    samples = made(pool)
    assert len(samples) == 24
    assert len({s.key for s in samples}) == 24
    assert Counter(s.kind for s in samples) == {"authentic": 12, "splice": 6, "regenerated": 6}
    groups = defaultdict(list)
    for sample in samples:
        groups[sample.unit].append(sample)
        assert shards.KEY.fullmatch(sample.key)
        assert sample.split == "test"
        assert (sample.mask is None) == (sample.label == 0)
        json.dumps(dict(sample.meta))
    assert {len(group) for group in groups.values()} == {3}
    assert set(groups) == {
        *(f"toy/original/{n:03d}" for n in range(4)), *(f"toy/{m}/{n:03d}f" for m in ("Swap", "Warp") for n in (0, 1)),
    }  # fmt: skip
    assert len({videos.faithful(unit) for unit in groups}) == 6  # Swap and Warp share two names
    for group in groups.values():
        assert len({s.source for s in group}) == 1
        assert len(group[0].source) == (2 if group[0].kind == "splice" else 1)


def test_the_same_seed_and_key_give_the_same_bytes_and_another_seed_others(pool: Any) -> None:
    first, again, other = made(pool), made(pool), made(pool, seed=1)
    assert [(s.key, s.image, s.mask) for s in first] == [(s.key, s.image, s.mask) for s in again]
    assert not {s.image for s in first} & {s.image for s in other}


def test_a_clip_does_not_depend_on_those_before_it(pool: Any) -> None:
    chosen = Photographs(pool, ("test",), clips.extent(SIZE))
    item = clips.plan(RECIPE, chosen, 8, 0, "toy")[5]
    _, _, frames = clips.clip(RECIPE, chosen, item, 3, SIZE, 0)
    assert [data for data, _, _ in frames] == [s.image for s in made(pool) if s.key.startswith(f"{item.key}-")]


def test_splits_get_real_and_fake_clips_of_their_own_photographs(pool: Any) -> None:
    recipe = dataclasses.replace(RECIPE, split="train")
    samples = made(pool, count=12, recipe=recipe, frames=2)
    labels = {split: {s.label for s in samples if s.split == split} for split in ("train", "val")}
    assert labels == {"train": {0, 1}, "val": {0, 1}}
    photos = {split: {p for s in samples if s.split == split for p in s.source} for split in labels}
    assert not photos["train"] & photos["val"]
    with pytest.raises(ValueError, match="3 clips for the splits train, val"):
        made(pool, count=6, recipe=recipe, frames=2)


def test_every_frame_of_a_fake_has_some_of_its_region(pool: Any) -> None:
    for sample in made(pool, count=60):
        image = shards.decode_image(sample.image)
        assert image.shape == (SIZE, SIZE, 3)
        if sample.mask is not None:
            mask = shards.decode_mask(sample.mask)
            assert mask.shape == (SIZE, SIZE)
            assert 0.04 < mask.mean() < 0.3


def test_real_and_fake_clips_are_stored_alike(pool: Any) -> None:
    samples = made(pool, count=48)
    stored = {label: sorted(str(s.meta["saved"]) for s in samples if s.label == label) for label in (0, 1)}
    assert stored[0] == stored[1]
    assert len(set(stored[0])) > 3
    assert {s.extension for s in samples} == {"jpg"}


def test_a_fake_differs_from_the_same_frame_unforged_in_its_region_alone(pool: Any) -> None:
    """Stored without loss of note (quality 100): beyond the feather's reach nothing changes but rounding."""
    chosen = Photographs(pool, ("test",), clips.extent(SIZE))
    for item in clips.plan(RECIPE, chosen, 8, 0, "toy"):
        if item.manipulation is None:
            continue
        recipe = dataclasses.replace(RECIPE, quality=(100, 100))
        _, _, forged = clips.clip(recipe, chosen, item, 2, SIZE, 0)
        _, _, clean = clips.clip(recipe, chosen, dataclasses.replace(item, manipulation=None), 2, SIZE, 0)
        for (fake, mask, _), (real, _, _) in zip(forged, clean, strict=True):
            apart = np.abs(shards.decode_image(fake).astype(int) - shards.decode_image(real)).mean(axis=2)
            near = cv2.dilate(mask.astype(np.uint8), np.ones((21, 21))) > 0
            assert apart[~near].max() <= 3
            assert apart[mask].mean() > 3


def test_noise_is_new_in_each_frame_and_its_level_the_clip_s() -> None:
    """A flat scene: what differs between frames is noise of the level that is recorded. Of brightness, as JPEG averages
    colour: the weights of R, G and B leave .668 of it, and rounding adds some."""
    recipe = dataclasses.replace(RECIPE, authentic=1.0, manipulations=(SWAP,), quality=(100, 100))
    samples = made(Flat({"p0": "test", "p1": "test"}), count=6, recipe=recipe)
    for group in range(2):
        frames = [s for s in samples if s.key.startswith(f"toy-{group:04d}")]
        if frames[0].meta["camera_quality"] is None:
            first, second = (shards.decode_image(s.image) @ [0.299, 0.587, 0.114] for s in frames[:2])
            sigma = frames[0].meta["sensor_sigma"]
            assert (first - second).std() == pytest.approx(0.668 * sigma * np.sqrt(2), rel=0.2)
            break
    else:
        pytest.fail("no clip without a camera's compression")


def test_views_stay_within_their_place() -> None:
    for trial in range(200):
        for view in clips.motion(4, SIZE, seeds.generator(trial, "toy", "test")):
            corners = view @ np.array([[0, SIZE, 0, SIZE], [0, 0, SIZE, SIZE], [1, 1, 1, 1]])
            assert corners.min() >= 0
            assert corners.max() <= clips.extent(SIZE)


def test_displacement_is_zero_outside_and_as_large_as_said_inside() -> None:
    region = np.zeros((80, 80), bool)
    region[20:60, 25:50] = True
    across, down = clips.displacement(region, 3.0, np.random.default_rng(0))
    length = np.hypot(across, down)
    assert length[~region].max() == 0
    assert length.max() == pytest.approx(3.0, rel=1e-5)


def test_colours_are_those_of_what_is_covered() -> None:
    content, image = textured(80, 80, 3), textured(80, 80, 4) // 4 * 3 + 30
    region = np.zeros((80, 80), bool)
    region[10:70, 10:70] = True
    own, mean, spread = (clips.coloured(content, image, region, how) for how in ("own", "mean", "spread"))
    assert (own == content).all()
    for matched in (mean, spread):
        assert np.abs(matched[region].mean(axis=0) - image[region].mean(axis=0)).max() < 3
    assert np.abs(spread[region].std(axis=0) - image[region].std(axis=0)).max() < 3


def test_a_membrane_continues_a_constant_difference() -> None:
    mask = np.zeros((64, 64), bool)
    mask[20:40, 20:40] = True
    found = clips.membrane(np.full((64, 64, 3), 12, np.float32), mask)
    assert np.abs(found[mask] - 12).max() < 0.5
