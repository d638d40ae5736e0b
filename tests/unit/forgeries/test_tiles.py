"""Tiles that fade into each other, and pictures of small ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unforge import tokenizers
from unforge.forgeries.steps import tiles


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(5, 15))
def test_tiles_that_are_left_as_they_are_give_the_image(height: int, width: int, overlap: int) -> None:
    image = noise(height, width)
    assert np.array_equal(tiles.blended(image, lambda batch: batch.astype(np.float32), 32, overlap, 0), image)


def test_neighbours_fade_linearly() -> None:
    """Two tiles of 12 px, 6 shared, the outermost 2 of each left out: half and half in the 2 px between them."""
    pair = [np.full((12, 12, 3), value, np.float32) for value in (0, 100)]
    row = tiles.joined(pair, [0], [0, 6], 6)[5, :, 0]
    assert row.shape == (18,)
    assert np.allclose(row[2:8], 0)
    assert np.allclose(row[8:10], [25, 75])
    assert np.allclose(row[10:16], 100)


def test_what_is_smooth_stays_the_images_own() -> None:
    """Tiles of wrong brightness, each another: the image keeps its own, and fine detail is the tiles'."""
    image = np.full((80, 80, 3), 100, np.uint8)

    def made(batch: np.ndarray) -> np.ndarray:
        wrong = batch.astype(np.float32) + 10 * np.arange(len(batch))[:, None, None, None] % 50
        wrong[:, ::2] += 20
        return wrong

    plain = tiles.blended(image, made, 32, 7, 0).astype(float)
    corrected = tiles.blended(image, made, 32, 7).astype(float)
    assert abs(plain.mean() - 100) > 10
    assert abs(corrected.mean() - 100) < 1
    blocks = corrected.reshape(10, 8, 10, 8, 3).mean(axis=(1, 3, 4))
    assert np.abs(blocks - 100).max() < 12
    assert np.abs(np.diff(corrected, axis=0)).mean() > 8


def test_no_border_of_a_tile_is_seen() -> None:
    """The outermost pixels of every tile are spoilt, and nothing of it is in the image."""

    def made(batch: np.ndarray) -> np.ndarray:
        spoilt = np.zeros(batch.shape, np.float32)
        spoilt[:, tiles.RIM : -tiles.RIM, tiles.RIM : -tiles.RIM] = 50
        return spoilt

    assert (tiles.blended(noise(70, 90), made, 32, tiles.OVERLAP, 0) == 50).all()


@pytest.mark.parametrize("overlap", [2 * tiles.RIM, 16])
def test_overlaps_that_make_no_sense_are_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"overlap {overlap}"):
        tiles.starts(64, 32, overlap)


def test_the_step_is_no_multiple_of_jpegs_blocks() -> None:
    assert all((32 - overlap) % 8 for overlap in (tiles.OVERLAP, round(32 * tiles.SCENE_OVERLAP)))


def test_a_scene_is_its_first_picture_with_detail() -> None:
    """Detail is not smooth: flat pictures add none; the first alone says what is where."""
    half = np.zeros((16, 16, 3), np.uint8)
    half[:, 8:] = 200
    flat = [half] + [np.full((16, 16, 3), value, np.uint8) for value in (0, 255, 90) for _ in range(100)]
    drawn = iter(flat)
    made = tiles.scene(lambda: next(drawn), 64).astype(float)
    assert made.shape == (64, 64, 3)
    assert np.median(made[:, :24]) < 40
    assert np.median(made[:, 40:]) > 160
    textured = iter([half] + [noise(16, 16, i) for i in range(300)])
    detailed = tiles.scene(lambda: next(textured), 64).astype(float)
    assert np.abs(np.diff(detailed, axis=0)).mean() > 3 * np.abs(np.diff(made, axis=0)).mean()


def test_every_level_draws_as_many_pictures_as_it_has_tiles() -> None:
    count = 0

    def draw() -> np.ndarray:
        nonlocal count
        count += 1
        return noise(16, 16)

    tiles.scene(draw, 64)
    # 1, then (32 + 7) / 9 -> 5 and (64 + 7) / 9 -> 8 tiles a side
    assert count == 1 + 25 + 64


@pytest.mark.parametrize("family", ["llamagen", "taming", "rar", "var", "infinity"])
def test_each_generator_renders_an_image_of_any_size(family: str) -> None:
    import torch

    torch.manual_seed(0)
    module: Any = tokenizers.load_module(family)
    tokenizer = tokenizers.build(family, dataclasses.replace(module.SMALL)).eval()
    tokenizer.trained()
    size = tokenizer.image_size
    render = tiles.renderer(tokenizer)
    image = noise(size + 9, 2 * size + 3)
    made = render(image)
    assert made.shape == image.shape
    assert made.dtype == np.uint8
    assert np.array_equal(made, render(image))
    assert (made != image).mean() > 0.5
    # the first tile by itself: no other one reaches its middle
    one = noise(size, size, 3)
    corner = np.pad(one, ((7, 0), (7, 0), (0, 0)), mode="symmetric")[None, :size, :size].copy()
    alone = decoded(tokenizer, corner)[0]
    assert tiles.OVERLAP == 7
    plain = tiles.blended(one, lambda batch: decoded(tokenizer, batch), size, 7, 0)
    assert np.abs(plain[2:16, 2:16] - alone[9:23, 9:23]).max() <= 1


def decoded(tokenizer: Any, batch: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        values = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        images = tokenizer.to_image(tokenizer.quantize(tokenizer.encode(values)).features)
    return np.asarray(images.mul(255).permute(0, 2, 3, 1).numpy())
