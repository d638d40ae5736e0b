"""UADFV: 49 real videos and a face swap of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from unforge.types import Card, Found
from unforge.videos import Clips, Manipulation, deepfakebench

VERSION = "1"

CARD = Card(
    name="UADFV",
    images={},
    licence="on request from its authors: research only",
    redistribute=False,
    source="Yang et al.: Exposing deep fakes using inconsistent head poses, ICASSP 2019. 49 real and 49 fake videos.",
    layout="{real,fake}/frames/<video>/NNN.png below UADFV, or UADFV.json of DeepfakeBench",
    defects=("DeepfakeBench lists real videos in every split: each is read once, as test",),
)

STAND_IN = Clips(
    manipulations=(
        Manipulation(
            name="FakeApp", how="swap", area=(0.08, 0.25), feather=(0.5, 2), colour="own", detail=(0.5, 0.8),
            grain=(0.0, 0.15),
        ),
    ),
    split="test",
    quality=(90, 98),
)  # fmt: skip


def people(_: str, video: str) -> tuple[str, ...]:
    """0000_fake is made of 0000."""
    return (f"uadfv:{re.sub(r'(?i)_(fake|real)$', '', video)}",)


LAYOUT = deepfakebench.Layout(
    dataset="uadfv",
    files=("UADFV",),
    labels={"UADFV_Real": "", "UADFV_Fake": "FakeApp"},
    folders={r"real/frames/([^/]+)": "", r"fake/frames/([^/]+)": "FakeApp"},
    people=people,
)


def find(root: Path) -> Iterator[Found]:
    """Rows of every frame, all test."""
    return deepfakebench.find(LAYOUT, root, deepfakebench.tests(deepfakebench.everything(LAYOUT, root)))
