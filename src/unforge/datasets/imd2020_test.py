"""IMD2020 with every image as a test image, as TamperTok's tables use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from unforge.datasets import imd2020
from unforge.types import Found

VERSION = imd2020.VERSION

CARD = dataclasses.replace(
    imd2020.CARD,
    name="IMD2020 (real-life), as a test set",
    defects=(
        *imd2020.CARD.defects[:2],
        "`imd2020` is the same set to train on (CAT-Net protocol): a protocol that has it loses every image that is "
        "tested here to the near-duplicate check, so an expert of that protocol is not scored on this set",
    ),
)

STAND_IN = dataclasses.replace(imd2020.STAND_IN, split="test")
"""From test photographs: keys, and so the seeds of every image, begin with this set's own name."""


def find(root: Path) -> Iterator[Found]:
    """The rows of `imd2020`, all of split `test`."""
    for row in imd2020.find(root):
        yield dataclasses.replace(row, split="test")
