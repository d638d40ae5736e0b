"""Small stand-ins that follow the contracts: a set of images in memory and a method of two convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from unforge.train.data import Member, Samples
from unforge.types import Batch, Losses, Prediction, Recipe

RECIPE = Recipe(
    source="test", optimiser="adamw", lr=1e-2, min_lr=1e-4, batch=4, epochs=10, samples_per_epoch=8,
    warmup_epochs=2.0, weight_decay=0.05,
)  # fmt: skip


class FakeSet:
    """What training reads of a `ShardSet`; manipulated images have a bright square."""

    def __init__(self, name: str, count: int, *, side: int = 24, label: int = 1, kind: str = "splice") -> None:
        self.name, self.path, self.digest, self.reads = name, Path("shards") / name, f"digest of {name}", 0
        rng = np.random.default_rng(len(name) + count)
        self.images: dict[str, np.ndarray] = {}
        self.masks: dict[str, np.ndarray] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        for i in range(count):
            key = f"{name}{i}"
            image, mask = rng.integers(0, 128, (side, side, 3), dtype=np.uint8), np.zeros((side, side), bool)
            if label:
                mask[i % 8 : i % 8 + side // 2, 4 : 4 + side // 2] = True
                image[mask] += 100
            self.images[key], self.masks[key] = image, mask
            self.rows[key] = {
                "key": key,
                "label": label,
                "kind": kind if label else "authentic",
                "unit": key,
                "source": [f"photo{i}"],
                "meta": "{}",
                "split": "train",
            }

    @property
    def keys(self) -> list[str]:
        return list(self.rows)

    def row(self, key: str) -> dict[str, Any]:
        return self.rows[key]

    def image(self, key: str) -> np.ndarray:
        self.reads += 1
        return self.images[key]

    def mask(self, key: str) -> np.ndarray:
        return self.masks[key]


def member(fake: FakeSet, weight: float = 1.0) -> Member:
    return Member(shards=fake, keys=fake.keys, weight=weight)  # type: ignore[arg-type]


def samples(seed: int = 0, **options: Any) -> Samples:
    members = [member(FakeSet("a", 5)), member(FakeSet("bb", 3, label=0))]
    return Samples(members, operations=("crop", "dihedral"), size=16, seed=seed, **options)


class Tiny(nn.Module):
    """Two convolutions with dropout in between."""

    EXTRAS: tuple[str, ...] = ()

    def __init__(self, dropout: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 1, 1)
        self.unused = nn.Linear(2, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Tensor) -> Tensor:
        return self.second(self.dropout(self.first(image).relu()))

    def loss(self, batch: Batch) -> Losses:
        bce = functional.binary_cross_entropy_with_logits(self(batch.image).float(), batch.mask)
        return Losses(total=bce, terms={"bce": bce})

    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        return Prediction(mask=self(image).sigmoid())

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "weight_decay": weight_decay}]


def equal(left: nn.Module, right: nn.Module) -> bool:
    """Whether all weights are the same, bit for bit."""
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
