"""One random generator per item, so results do not depend on workers, order or restarts."""

from __future__ import annotations

import hashlib

import numpy as np


def integer(seed: int, key: str, purpose: str) -> int:
    """64-bit seed of one item: SHA-256 of (seed, key, purpose)."""
    text = f"{seed}\x1f{key}\x1f{purpose}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def generator(seed: int, key: str, purpose: str) -> np.random.Generator:
    """numpy generator of one item (PCG64)."""
    return np.random.Generator(np.random.PCG64(integer(seed, key, purpose)))


def fraction(seed: int, key: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the item only: for splits and for choosing subsets."""
    return integer(seed, key, purpose) / 2**64
