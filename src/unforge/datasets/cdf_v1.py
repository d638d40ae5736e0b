"""Celeb-DF v1: the test videos of its list."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from unforge.datasets import cdf_v2
from unforge.types import Found
from unforge.videos import Clips, Manipulation

VERSION = cdf_v2.VERSION

CARD = dataclasses.replace(
    cdf_v2.CARD,
    name="Celeb-DF v1 (test videos)",
    source="Li et al.: Celeb-DF, CVPR 2020 (first version, 2019). 158 + 250 real and 795 fake videos, of which 38 and "
    "62 are for testing.",
    layout=cdf_v2.CARD.layout.replace("v2", "v1"),
)

STAND_IN = Clips(
    manipulations=(
        Manipulation(
            name="Celeb-synthesis", how="swap", area=(0.08, 0.22), feather=(2, 4), detail=(0.6, 0.9), grain=(0.0, 0.3)
        ),
    ),
    split="test",
    quality=(85, 96),
)

LAYOUT = cdf_v2.of_version(1)


def find(root: Path) -> Iterator[Found]:
    """Rows of every frame of the test videos."""
    return cdf_v2.listed(LAYOUT, root)
