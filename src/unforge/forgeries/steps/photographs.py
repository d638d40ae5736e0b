"""Natural crops of the photograph pool: each photograph is decoded once and shrunk once per scale."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import cv2
import numpy as np

SCALES = (1 / 3, 1 / 2, 2 / 3, 1.0)
"""Shrinking takes the photograph's own JPEG traces away; two are on offer per photograph, the smallest that fit."""

TRIES = 20


class Pool(Protocol):
    """What is needed of a `shards.ShardSet` of photographs."""

    @property
    def rows(self) -> dict[str, dict[str, Any]]: ...

    def image(self, key: str) -> np.ndarray: ...


class Photographs:
    """The photographs of some splits of a pool, for crops of one size."""

    def __init__(self, pool: Pool, splits: tuple[str, ...], size: int) -> None:
        """`size` is the shortest side in pixels a photograph must have at one of `SCALES`.

        Raises ValueError when fewer than two sources of one split are large enough: a splice needs a donor.
        """
        self.pool = pool
        self.rows = {
            key: row
            for key, row in sorted(pool.rows.items())
            if row["split"] in splits and min(row["width"], row["height"]) >= size
        }
        for split in splits:
            sources = {row["source"][0] for row in self.rows.values() if row["split"] == split}
            if len(sources) < 2:
                raise ValueError(
                    f"{len(sources)} photographs of split {split!r} have {size} px: two are needed; "
                    "make the images smaller (profile) or add photographs to the pool"
                )
        self._scaled = cache(self._shrink)
        self._decoded = cache(self._decode)

    def donors(self, key: str) -> list[str]:
        """Photographs of the same split and another source."""
        own = self.rows[key]
        return [
            other
            for other, row in self.rows.items()
            if row["split"] == own["split"] and row["source"][0] != own["source"][0]
        ]

    def _decode(self, key: str) -> np.ndarray:
        pixels = self.pool.image(key)
        half = max(1, round(min(pixels.shape[:2]) / 2048))
        return pixels if half == 1 else _shrink(pixels, 1 / half)

    def _shrink(self, key: str, scale: float) -> np.ndarray:
        return _shrink(self._decoded(key), scale)

    def crop(self, key: str, size: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """A (size, size, 3) uint8 crop of a photograph and where it was taken; blank walls are drawn again."""
        short = min(self._decoded(key).shape[:2])
        fitting = [scale for scale in SCALES if round(short * scale) >= size][:2]
        best: tuple[float, np.ndarray, dict[str, Any]] | None = None
        for _ in range(TRIES):
            scale = fitting[int(rng.integers(len(fitting)))]
            whole = self._scaled(key, scale)
            y = int(rng.integers(whole.shape[0] - size + 1))
            x = int(rng.integers(whole.shape[1] - size + 1))
            flip = bool(rng.random() < 0.5)
            pixels = whole[y : y + size, x : x + size]
            value = texture(pixels)
            if best is None or value > best[0]:
                place = {"photo": key, "scale": round(scale, 4), "x": x, "y": y, "size": size, "flip": flip}
                best = (value, pixels[:, ::-1] if flip else pixels, place)
            if value >= 0.5:
                break
        assert best is not None
        return np.ascontiguousarray(best[1]), best[2]


def _shrink(pixels: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1.0:
        return pixels
    height, width = pixels.shape[:2]
    return cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def texture(pixels: np.ndarray) -> float:
    """Share of 16-px blocks, [0, 1], that are neither flat (luma deviation below 3) nor clipped."""
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    blocks = (max(1, luma.shape[1] // 16), max(1, luma.shape[0] // 16))
    mean = cv2.resize(luma, blocks, interpolation=cv2.INTER_AREA)
    square = cv2.resize(luma * luma, blocks, interpolation=cv2.INTER_AREA)
    return float(np.mean((square - mean * mean > 9.0) & (mean > 8) & (mean < 247)))
