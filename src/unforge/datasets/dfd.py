"""DeepFakeDetection: Google's and Jigsaw's videos of paid actors, distributed with FaceForensics++."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from unforge.types import Card, Found
from unforge.videos import Clips, Manipulation, deepfakebench

VERSION = "1"

CARD = Card(
    name="DeepFakeDetection (DFD, c23)",
    images={},
    licence="FaceForensics++ terms of use: research only, on request",
    redistribute=False,
    source="Dufour and Gully: Contributing data to deepfake detection research, Google AI 2019. 363 real and 3,068 "
    "fake videos of 28 actors.",
    layout="{original_sequences/actors,manipulated_sequences/DeepFakeDetection}/c23/{frames,masks}/<video>/NNN.png, "
    "with or without DeepFakeDetection.json of DeepfakeBench",
    defects=(
        "no split is published; DeepfakeBench lists every video in train, val and test: each is read once, as test",
        "28 actors are in all of its videos: intervals over actors (`source`) are wider than over videos",
    ),
)

STAND_IN = Clips(
    manipulations=(
        Manipulation(
            name="DeepFakeDetection", how="swap", area=(0.05, 0.12), feather=(1, 3), detail=(0.6, 1.0), grain=(0.0, 0.3)
        ),
    ),
    split="test",
)


def people(_: str, video: str) -> tuple[str, ...]:
    """Actors: 01_02__walk__X is actor 01's video with 02's face, 01__walk is actor 01."""
    numbers = re.match(r"(\d+)(?:_(\d+))?__", video)
    return tuple(f"dfd:{number}" for number in numbers.groups() if number) if numbers else (f"dfd:{video}",)


LAYOUT = deepfakebench.Layout(
    dataset="dfd",
    files=("DeepFakeDetection",),
    labels={"DFD_real": "", "DFD_fake": "DeepFakeDetection"},
    folders={
        r"original_sequences/actors/c23/frames/([^/]+)": "",
        r"manipulated_sequences/DeepFakeDetection/c23/frames/([^/]+)": "DeepFakeDetection",
    },
    people=people,
)


def find(root: Path) -> Iterator[Found]:
    """Rows of every frame, all test."""
    return deepfakebench.find(LAYOUT, root, deepfakebench.tests(deepfakebench.everything(LAYOUT, root)))
