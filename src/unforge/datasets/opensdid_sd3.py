"""OpenSDID's test images of SD3 (published split `sd3`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from unforge.datasets import opensdid_train
from unforge.types import Found

VERSION = opensdid_train.VERSION
GENERATOR = "var"
"""What makes the stand-in's images."""

CARD = dataclasses.replace(
    opensdid_train.CARD,
    name="OpenSDID (test images, SD3)",
    images={"authentic": 10000},
    source="Wang et al.: OpenSDI, CVPR 2025; Hugging Face nebula/OpenSDI_test (split sd3). 10,000 real and 10,000 "
    "fake images; how many of the fake ones are whole images is not published.",
    layout="sd3-*.parquet, or a tree of files with the folder sd3, as for opensdid_train",
)

STAND_IN = dataclasses.replace(opensdid_train.STAND_IN, split="test")


def find(root: Path) -> Iterator[Found]:
    """Rows of SD3; `meta["part"]` is real, full_synthetic or tampered."""
    return opensdid_train.tests(root, "sd3")
