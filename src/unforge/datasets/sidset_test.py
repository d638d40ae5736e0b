"""The test images of SID-Set, which are published apart from the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from unforge.datasets import sidset
from unforge.types import Found

VERSION = sidset.VERSION

CARD = dataclasses.replace(
    sidset.CARD,
    name="SID-Set (test)",
    images={"authentic": 20000, "generated": 20000, "regenerated": 20000},
    layout="test/{real/*.jpg, full_synthetic/*.png, tampered/*.png, masks/<name>_mask.png} or test-*.parquet, as for "
    "sidset; without any split's name all images are test images",
)

STAND_IN = dataclasses.replace(sidset.STAND_IN, split="test")


def find(root: Path) -> Iterator[Found]:
    """Rows of the split test; `meta["part"]` is real, full_synthetic or tampered."""
    rows, undivided = sidset.everything(root)
    yield from (row for row in rows if row.split == "test")
    yield from (dataclasses.replace(row, split="test") for row in undivided)
