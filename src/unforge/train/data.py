"""Training samples from shards: every sample is a function of (seed, step, index), so a run can stop and go on
anywhere, with any number of loading processes, on any number of GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unforge import seeds
from unforge.shards import ShardSet
from unforge.train import augment
from unforge.types import Batch

CACHE_BYTES = 2**30
"""Decoded images kept in memory by one run (bytes), over all its loading processes."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One part of a training protocol."""

    shards: ShardSet
    keys: Sequence[str]
    weight: float
    """Share of the samples, relative to the other members'."""


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """A batch as loaded: 4 bytes per pixel."""

    image: np.ndarray
    """(B, H, W, 3) uint8, RGB."""
    mask: np.ndarray
    """(B, H, W) bool."""
    label: np.ndarray
    """(B,) int64."""
    key: tuple[str, ...]
    unit: tuple[str, ...]
    source: tuple[tuple[str, ...], ...]

    def batch(self, device: torch.device) -> Batch:
        image = torch.from_numpy(self.image).to(device).permute(0, 3, 1, 2).contiguous()
        return Batch(
            image=image.float().div_(255),
            mask=torch.from_numpy(self.mask).to(device)[:, None].float(),
            label=torch.from_numpy(self.label).to(device),
            key=self.key,
            unit=self.unit,
            source=self.source,
        )


class Samples:
    """Endless random samples of a protocol's members.

    Each sample draws its member by weight and then one of the member's images, all equally likely and
    with replacement (Deviation: the CAT-Net code draws without replacement within an epoch and then
    shuffles; in the mean both see each member equally often, and only this one needs no epoch).
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        operations: tuple[str, ...],
        size: int,
        seed: int,
        workers: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """`operations`: names of `augment.OPERATIONS`; `size`: side of a training image (pixels).

        Raises ValueError for an empty member, a weight that is not positive or an unknown operation.
        """
        for member in members:
            if not member.keys or member.weight <= 0:
                raise ValueError(
                    f"{member.shards.path}: {len(member.keys)} training images with weight {member.weight}"
                )
        unknown = sorted(set(operations) - set(augment.OPERATIONS))
        if unknown or not members:
            raise ValueError(
                f"{len(members)} members, augmentations {unknown} unknown: there is {sorted(augment.OPERATIONS)}"
            )
        self.members, self.operations, self.size, self.seed = list(members), operations, size, seed
        weights = np.array([member.weight for member in members], dtype=np.float64)
        self.bounds = np.cumsum(weights / weights.sum())
        self.cache: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]] = {}
        self.room = cache_bytes // max(1, workers)

    def load(self, step: int, first: int, count: int) -> Arrays:
        """Samples first .. first + count - 1 of a step."""
        rows, images, masks = zip(*(self.sample(step, index) for index in range(first, first + count)), strict=True)
        mask = np.stack(masks)
        label = np.array([row["label"] for row in rows], dtype=np.int64)
        return Arrays(
            image=np.stack(images),
            mask=mask,
            label=np.maximum(label, mask.any(axis=(1, 2))),
            key=tuple(row["key"] for row in rows),
            unit=tuple(row["unit"] for row in rows),
            source=tuple(tuple(row["source"]) for row in rows),
        )

    def sample(self, step: int, index: int) -> tuple[Mapping[str, Any], np.ndarray, np.ndarray]:
        """Manifest row, image (size, size, 3) uint8 and mask (size, size) bool of one sample."""
        rng = seeds.generator(self.seed, f"{step}/{index}", "sample")
        place = min(int(np.searchsorted(self.bounds, rng.random(), side="right")), len(self.members) - 1)
        member = self.members[place]
        key = member.keys[int(rng.integers(len(member.keys)))]
        image, mask = self._pixels(place, key)
        image, mask = augment.apply(self.operations, image, mask, rng, self.size)
        return member.shards.row(key), image, mask

    def _pixels(self, place: int, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Decoded image and mask; kept while there is room, read again otherwise."""
        pixels = self.cache.get((place, key))
        if pixels is None:
            shards = self.members[place].shards
            pixels = (shards.image(key), shards.mask(key))
            needed = sum(array.nbytes for array in pixels)
            if needed <= self.room:
                self.room -= needed
                self.cache[(place, key)] = pixels
        return pixels
