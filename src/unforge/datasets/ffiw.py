"""FFIW-10K: videos with several faces of which some are swapped, test part."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from unforge.types import Card, Found
from unforge.videos import Clips, Manipulation, deepfakebench

VERSION = "1"

CARD = Card(
    name="FFIW-10K (test videos)",
    images={},
    licence="FFIW terms: research only, on request",
    redistribute=False,
    source="Zhou et al.: Face Forensics in the Wild, CVPR 2021. 10,000 real and 10,000 fake videos, 250 of each "
    "for testing.",
    layout="{source,target}/test/{frames,masks}/<video>/NNN.png: real videos in source, fake ones in target",
    defects=(
        "DeepfakeBench does not read it and the paper does not say how frames were cropped: ASSUMPTION(paper): folders "
        "as in the release, frames below them as DeepfakeBench stores those of other sets",
        "a fake frame may have untouched faces beside swapped ones: label and score are those of the video",
    ),
)

STAND_IN = Clips(
    manipulations=(
        Manipulation(
            name="FFIW", how="swap", area=(0.04, 0.09), feather=(0.5, 2.5), detail=(0.5, 0.9), grain=(0.0, 0.25)
        ),
    ),
    split="test",
    quality=(85, 95),
)


def people(_: str, video: str) -> tuple[str, ...]:
    """A fake video has the number of the real one that it was made of."""
    number = re.search(r"\d+", video)
    return (f"ffiw:{number[0] if number else video}",)


LAYOUT = deepfakebench.Layout(
    dataset="ffiw",
    files=("FFIW",),
    labels={"FFIW_Real": "", "FFIW_Fake": "FFIW"},
    folders={r"source/test/(?:frames/)?([^/]+)": "", r"target/test/(?:frames/)?([^/]+)": "FFIW"},
    people=people,
)


def find(root: Path) -> Iterator[Found]:
    """Rows of every frame of the test videos."""
    return deepfakebench.find(LAYOUT, root, deepfakebench.tests(deepfakebench.everything(LAYOUT, root)))
