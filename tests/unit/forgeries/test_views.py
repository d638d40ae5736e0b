"""Views: squares of photographs that turn up where their record says, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest

from unforge import seeds, shards
from unforge.forgeries.steps import views
from unforge.types import Sample, Views

RECIPE = Views(splits={"pretrain": "train", "train": "train", "val": "val"}, extension="png")
JPEG = Views(splits={"test": "test"}, quality=(80, 84))


def made(pool: Any, count: int = 24, seed: int = 0, recipe: Views = RECIPE, size: int = 32) -> list[Sample]:
    return list(views.views(recipe, pool, count, size, seed, "toy"))


def test_a_view_is_the_mean_of_the_square_it_names(pool: Any) -> None:
    """Where the square's side is a multiple of the view's, a mean over blocks is what numpy says."""
    picture = pool.image("photo0")
    checked = 0
    for trial in range(400):
        pixels, where = views.view(picture, 32, seeds.generator(trial, "photo0", "test"))
        assert 32 <= where["side"] <= 160
        square = picture[where["y"] : where["y"] + where["side"], where["x"] : where["x"] + where["side"]]
        assert square.shape == (where["side"], where["side"], 3)
        factor, rest = divmod(where["side"], 32)
        if not rest:
            blocks = square.reshape(32, factor, 32, factor, 3).astype(float).mean(axis=(1, 3))
            assert np.abs(pixels - blocks).max() <= 0.5 + 1e-6
            checked += factor > 1
    assert checked >= 3


def test_counts_labels_splits_and_sources(pool: Any) -> None:
    samples = made(pool)
    assert [s.key for s in samples] == [f"toy-{i:05d}" for i in range(24)]
    assert set(Counter(s.source for s in samples).values()) == {3}
    for sample in samples:
        assert (sample.label, sample.kind, sample.mask, sample.origin, sample.tokens) == (
            0,
            "authentic",
            None,
            None,
            None,
        )
        assert shards.KEY.fullmatch(sample.key)
        assert sample.unit == sample.key
        assert sample.extension == "png"
        assert shards.decode_image(sample.image).shape == (32, 32, 3)
        photo = sample.source[0].removeprefix("photo:")
        meta = json.loads(json.dumps(dict(sample.meta)))
        assert meta["view"]["photo"] == photo
        assert (meta["seed"], meta["saved"]) == (0, {"quality": None})
        assert RECIPE.splits[pool.rows[photo]["split"]] == sample.split
    assert Counter(s.split for s in samples) == {"train": 18, "val": 6}
    assert len(pool.decoded) == len(set(pool.decoded)) == 8


def test_photographs_of_other_splits_are_left_out_and_turns_are_even(pool: Any) -> None:
    samples = made(pool, 32, recipe=JPEG)
    assert {pool.rows[s.source[0].removeprefix("photo:")]["split"] for s in samples} == {"test"}
    assert sorted(Counter(s.source for s in samples).values()) == [10, 11, 11]


def test_sides_are_log_uniform(pool: Any) -> None:
    """Each octave has as many: of 32 to 160 px, below 2 ** k times 32 is k / log2(5)."""
    sides = np.array([s.meta["view"]["side"] for s in made(pool, 600)])
    assert abs((sides < 64).mean() - 1 / np.log2(5)) < 0.06
    assert abs((sides < 128).mean() - 2 / np.log2(5)) < 0.06


def test_quality_is_drawn_from_the_recipes_range(pool: Any) -> None:
    samples = made(pool, 60, recipe=JPEG)
    assert {s.meta["saved"]["quality"] for s in samples} == set(range(80, 85))
    for sample in samples[:5]:
        assert sample.extension == "jpg"
        photo = cv2.cvtColor(shards.decode_image(sample.image), cv2.COLOR_RGB2BGR)
        assert photo.shape == (32, 32, 3)
    lossless = made(pool, 60, recipe=dataclasses.replace(JPEG, extension="png"))
    for jpeg, png in zip(samples, lossless, strict=True):
        done, data = cv2.imencode(
            ".jpg",
            cv2.cvtColor(shards.decode_image(png.image), cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_JPEG_QUALITY, jpeg.meta["saved"]["quality"]],
        )
        assert done
        assert data.tobytes() == jpeg.image


def test_equal_seeds_equal_bytes_and_views_do_not_depend_on_each_other(pool: Any) -> None:
    first = made(pool, 16)
    assert first == made(pool, 16)
    assert not {s.image for s in first} & {s.image for s in made(pool, 16, seed=1)}
    for sample in first:
        photo = sample.source[0].removeprefix("photo:")
        alone, _ = views.view(pool.image(photo), 32, seeds.generator(0, sample.key, "view"))
        assert np.array_equal(alone, shards.decode_image(sample.image))


def test_large_photographs_are_reduced_first(pool: Any) -> None:
    assert views.extent(1920, 2880) == (683, 1024)
    assert views.extent(2880, 1920) == (1024, 683)
    assert views.extent(1024, 400) == (1024, 400)
    blocks = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    picture = blocks.repeat(512, axis=0).repeat(512, axis=1)
    assert np.array_equal(views.reduced(picture), blocks.repeat(256, axis=0).repeat(256, axis=1))


def test_blank_squares_are_drawn_again(pool: Any) -> None:
    picture = np.full((160, 160, 3), 200, np.uint8)
    picture[:80, :80] = pool.image("photo0")[:80, :80]
    blank = 0
    for trial in range(100):
        pixels, _ = views.view(picture, 32, seeds.generator(trial, "image", "test"))
        blank += pixels.std() < 1
    assert blank == 0
    nothing = np.full((160, 160, 3), 200, np.uint8)
    assert np.array_equal(views.view(nothing, 32, seeds.generator(0, "image", "test"))[0], nothing[:32, :32])


def test_a_split_without_large_enough_photographs_is_refused(pool: Any) -> None:
    with pytest.raises(ValueError, match=r"split 'test' has 161 px"):
        made(pool, recipe=JPEG, size=161)
    assert len(made(pool, 2, recipe=JPEG, size=160)) == 2
    with pytest.raises(ValueError, match="split 'dusk'"):
        made(pool, recipe=Views(splits={"dusk": "test"}))
