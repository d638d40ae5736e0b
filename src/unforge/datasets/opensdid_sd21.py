"""OpenSDID's test images of SD2.1 (published split `sd2`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from unforge.datasets import opensdid_train
from unforge.types import Found

VERSION = opensdid_train.VERSION
GENERATOR = "taming"
"""What makes the stand-in's images."""

CARD = dataclasses.replace(
    opensdid_train.CARD,
    name="OpenSDID (test images, SD2.1)",
    images={"authentic": 10000},
    source="Wang et al.: OpenSDI, CVPR 2025; Hugging Face nebula/OpenSDI_test (split sd2). 10,000 real and 10,000 "
    "fake images; how many of the fake ones are whole images is not published.",
    layout="sd2-*.parquet, or a tree of files with the folder sd2, as for opensdid_train",
)

STAND_IN = dataclasses.replace(opensdid_train.STAND_IN, split="test")


def find(root: Path) -> Iterator[Found]:
    """Rows of SD2.1; `meta["part"]` is real, full_synthetic or tampered."""
    return opensdid_train.tests(root, "sd2")
