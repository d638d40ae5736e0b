"""UniFace of DF40: face swaps of FaceForensics++'s videos by a newer method."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from unforge.datasets import faceforensics
from unforge.types import Card, Found
from unforge.videos import Clips, Manipulation

VERSION = "1"

CARD = Card(
    name="UniFace of DF40 (test videos)",
    images={},
    licence="DF40's terms (CC BY-NC 4.0 for the repository; videos on request)",
    redistribute=False,
    source="Xu et al.: UniFace, ECCV 2022; Yan et al.: DF40, NeurIPS 2024, YZY-stack/DF40 (uniface_ff).",
    layout="uniface_ff.json of DF40 with the files it names, or {uniface/ff/frames,original_sequences/youtube/c23/"
    "frames}/<video>/NNN.png and the official test.json of FaceForensics++",
    defects=(
        "ASSUMPTION(paper): of DF40's two halves the one made of FaceForensics++ (uniface_ff) is meant; it is labelled "
        "uniface_Real and uniface_Fake, as DeepfakeBench labels roop",
        "DF40's test and validation splits have videos in common (issue 14): only test is read",
        "its real videos are FaceForensics++'s: of another split than the lists say, a video is rejected",
    ),
)

STAND_IN = Clips(
    manipulations=(
        Manipulation(
            name="UniFace", how="swap", area=(0.15, 0.35), feather=(2, 5), colour="spread", membrane=True,
            detail=(0.5, 0.8), grain=(0.1, 0.4),
        ),
    ),
    split="test",
    quality=(88, 97),
)  # fmt: skip

LAYOUT = dataclasses.replace(
    faceforensics.LAYOUT,
    dataset="uniface",
    files=("uniface_ff",),
    labels={"uniface_Real": "", "FF-real": "", "uniface_Fake": "UniFace"},
    folders={faceforensics.REAL: "", r"uniface/ff/(?:frames/)?([^/]+)": "UniFace"},
)


def find(root: Path) -> Iterator[Found]:
    """Rows of every frame of split test."""
    return faceforensics.tests(LAYOUT, root)
