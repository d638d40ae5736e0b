"""FaceShifter: the fifth manipulation of FaceForensics++, published later, as a test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from unforge.datasets import faceforensics
from unforge.types import Card, Found
from unforge.videos import Clips, Manipulation

VERSION = "1"

CARD = Card(
    name="FaceShifter (test videos)",
    images={},
    licence="FaceForensics++ terms of use: research only, on request",
    redistribute=False,
    source="Li et al., CVPR 2020, as distributed with FaceForensics++ (1,000 fake videos). 140 fake and 140 real "
    "videos of the official test split.",
    layout="as faceforensics, with manipulated_sequences/FaceShifter/c23 and FaceShifter.json of DeepfakeBench or the "
    "official test.json",
    defects=(
        "DeepfakeBench labels it FF-FH",
        "its real videos are those of FaceForensics++: only the test split is read, so that no person was learnt from; "
        "without any list every video counts as test, flagged, and what shares a person is left out of training",
    ),
)

STAND_IN = Clips(
    manipulations=(
        Manipulation(
            name="FaceShifter", how="swap", area=(0.1, 0.25), feather=(2, 4), membrane=True, detail=(0.6, 0.85),
            grain=(0.05, 0.4),
        ),
    ),
    split="test",
    quality=(85, 96),
)  # fmt: skip

LAYOUT = dataclasses.replace(
    faceforensics.LAYOUT,
    dataset="faceshifter",
    files=("FaceShifter", "FF-FH"),
    labels={"FF-real": "", "FF-FH": "FaceShifter"},
    folders={
        faceforensics.REAL: "",
        r"manipulated_sequences/FaceShifter/c23/frames/([^/]+)": "FaceShifter",
    },
)


def find(root: Path) -> Iterator[Found]:
    """Rows of every frame of split test."""
    return faceforensics.tests(LAYOUT, root)
