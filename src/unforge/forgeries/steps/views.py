"""Views of photographs: squares of many sizes, averaged down. Nothing is forged; what was in a photograph is kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import cv2
import numpy as np

from unforge import seeds
from unforge.forgeries.steps import camera
from unforge.forgeries.steps.photographs import TRIES, Pool, texture
from unforge.types import Sample, Views

VERSION = "1"
LONGEST = 1024
"""Longest side in pixels of the photograph a view is taken from: larger ones are reduced first, so that the smallest
views still show something."""
BLANK = 0.5
"""Views with less texture are drawn again."""


def views(recipe: Views, pool: Pool, count: int, size: int, seed: int, name: str) -> Iterator[Sample]:
    """`count` authentic images of `size` x `size` px by `recipe`, from the photographs of the `shards.ShardSet` `pool`.

    `name` is the set's id and begins every key. Photographs take turns. A view depends on `seed`, its key and its
    photograph only. Raises ValueError when a split that the recipe names has no photograph of `size` px.
    """
    rows = photographs(recipe, pool, size)

    @cache
    def photograph(key: str) -> np.ndarray:
        return reduced(pool.image(key))

    rng = seeds.generator(seed, name, "plan")
    turns = [sorted(rows)[i] for i in rng.permutation(len(rows))]
    for i, place in enumerate(rng.permutation(count)):
        key, photo = f"{name}-{i:05d}", turns[place % len(turns)]
        own = seeds.generator(seed, key, "view")
        pixels, where = view(photograph(photo), size, own)
        quality = int(own.integers(recipe.quality[0], recipe.quality[1] + 1))
        yield Sample(
            key=key,
            image=camera.save(pixels, recipe.extension, quality),
            extension=recipe.extension,
            mask=None,
            label=0,
            kind="authentic",
            source=(rows[photo]["source"][0],),
            unit=key,
            split=recipe.splits[rows[photo]["split"]],
            meta={
                "seed": seed,
                "view": {"photo": photo, **where},
                "saved": {"quality": quality if recipe.extension == "jpg" else None},
            },
        )


def photographs(recipe: Views, pool: Pool, size: int) -> dict[str, dict[str, Any]]:
    """Rows by key of the photographs that views of `size` px are taken from: those of the recipe's splits whose short
    side, once reduced, has `size` px. ValueError when a split has none."""
    rows = {
        key: row
        for key, row in pool.rows.items()
        if row["split"] in recipe.splits and min(extent(row["width"], row["height"])) >= size
    }
    for split in sorted(recipe.splits):
        if not any(row["split"] == split for row in rows.values()):
            raise ValueError(
                f"no photograph of split {split!r} has {size} px (short side, reduced to {LONGEST} px): "
                "make the images smaller (profile) or add photographs to the pool"
            )
    return rows


def extent(width: int, height: int) -> tuple[int, int]:
    """Width and height once reduced to at most `LONGEST` px; smaller ones as they are."""
    factor = min(1.0, LONGEST / max(width, height))
    return round(width * factor), round(height * factor)


def reduced(pixels: np.ndarray) -> np.ndarray:
    """A photograph (H, W, 3) uint8, averaged over areas to at most `LONGEST` px."""
    height, width = pixels.shape[:2]
    target = extent(width, height)
    return pixels if target == (width, height) else cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)


def view(photograph: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    """A square of a photograph (H, W, 3) uint8 as (size, size, 3) uint8, and where it was: `x`, `y` and `side` in
    pixels of the photograph. Its side is log-uniform from `size` to the short side; of at most `TRIES` blank ones the
    one with most texture."""
    height, width = photograph.shape[:2]
    best: tuple[float, np.ndarray, dict[str, Any]] | None = None
    for _ in range(TRIES):
        side = round(float(np.exp(rng.uniform(np.log(size), np.log(min(height, width))))))
        y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        square = np.ascontiguousarray(photograph[y : y + side, x : x + side])
        pixels = square if side == size else cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
        value = texture(pixels)
        if best is None or value > best[0]:
            best = (value, pixels, {"x": x, "y": y, "side": side})
        if value >= BLANK:
            break
    assert best is not None
    return best[1], best[2]
