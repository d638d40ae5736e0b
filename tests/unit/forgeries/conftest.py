"""A pool of made-up photographs, in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage


class Pool:
    """What a forgery needs of a shard set."""

    def __init__(self, splits: dict[str, str], side: int = 160) -> None:
        self.side = side
        self.rows: dict[str, dict[str, Any]] = {
            key: {"source": [f"photo:{key}"], "split": split, "width": side + 20, "height": side}
            for key, split in splits.items()
        }
        self.decoded: list[str] = []

    def image(self, key: str) -> np.ndarray:
        self.decoded.append(key)
        return textured(self.side, self.side + 20, sum(map(ord, key)))


def textured(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal((height, width, 3)), (s, s, 0)) * s for s in (2, 5, 12)]
    return np.clip(128 + 90 * sum(fields), 0, 255).astype(np.uint8)


@pytest.fixture
def pool() -> Pool:
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 3 + ["pretrain"] * 2
    return Pool({f"photo{i}": split for i, split in enumerate(splits)})


@pytest.fixture
def image() -> np.ndarray:
    return textured(128, 128, 1)


@pytest.fixture
def donor() -> np.ndarray:
    return textured(128, 128, 2)
