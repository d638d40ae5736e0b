"""Celeb-DF v2: the test videos of its list."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from unforge.datasets import layout
from unforge.types import Card, Found
from unforge.videos import Clips, Manipulation, deepfakebench

VERSION = "1"
LIST = "List_of_testing_videos.txt"
REAL = ("Celeb-real", "YouTube-real")
NO_LIST = f"no {LIST}: every video counts as test"

CARD = Card(
    name="Celeb-DF v2 (test videos)",
    images={},
    licence="Celeb-DF terms of use: research only, on request",
    redistribute=False,
    source="Li et al.: Celeb-DF, CVPR 2020. 590 + 300 real and 5,639 fake videos, 178 and 340 of them for testing.",
    layout="{Celeb-real,YouTube-real,Celeb-synthesis}/{frames,masks}/<video>/NNN.png and List_of_testing_videos.txt, "
    "or Celeb-DF-v2.json of DeepfakeBench",
    defects=(
        "DeepfakeBench uses one list as validation and as test: it is only a test set here",
        "the list writes 1 for real: a line that contradicts its folder gives a rejected video",
        "persons of Celeb-real have numbers (id0), those of YouTube-real have none: each is one of its own",
    ),
)

STAND_IN = Clips(
    manipulations=(
        Manipulation(
            name="Celeb-synthesis", how="swap", area=(0.06, 0.2), feather=(3, 5), colour="spread", detail=(0.7, 1.0),
            grain=(0.15, 0.5),
        ),
    ),
    split="test",
    quality=(82, 95),
)  # fmt: skip


def people(_: str, video: str) -> tuple[str, ...]:
    """id0_id1_0000 is id0's video with id1's face."""
    ids = re.match(r"(id\d+)(?:_(id\d+))?_", video)
    return tuple(f"celebdf:{name}" for name in ids.groups() if name) if ids else (f"celebdf:{video}",)


def of_version(version: int) -> deepfakebench.Layout:
    """Layout of version 1 or 2."""
    return deepfakebench.Layout(
        dataset=f"cdf_v{version}",
        files=(f"Celeb-DF-v{version}",),
        labels={f"CelebDFv{version}_real": "", f"CelebDFv{version}_fake": "Celeb-synthesis"},
        folders={r"(?:Celeb|YouTube)-real/frames/([^/]+)": "", r"Celeb-synthesis/frames/([^/]+)": "Celeb-synthesis"},
        people=people,
    )


LAYOUT = of_version(2)


def find(root: Path) -> Iterator[Found]:
    """Rows of every frame of the test videos."""
    return listed(LAYOUT, root)


def listed(about: deepfakebench.Layout, root: Path) -> Iterator[Found]:
    """Rows of the videos on the list of test videos; a rejected one for each that is not there."""
    rows = deepfakebench.everything(about, root)
    if any(row.split for row in rows):
        return deepfakebench.find(about, root, deepfakebench.tests(rows))
    lists = deepfakebench.named(layout.files(root), LIST)
    if not lists:
        return deepfakebench.find(about, root, [dataclasses.replace(row, split="test", note=NO_LIST) for row in rows])
    known, found = {(bool(row.manipulation), row.name): row for row in rows}, []
    for number, line in enumerate(deepfakebench.text(root, lists[0]).splitlines(), start=1):
        said, _, path = line.strip().partition(" ")
        if not path:
            continue
        folder, name = PurePosixPath(path).parent.name, PurePosixPath(path.strip()).stem
        fake = folder not in REAL
        row = known.get((fake, name))
        named = deepfakebench.Video(manipulation="Celeb-synthesis" if fake else "", name=layout.printable(name))
        row = row or dataclasses.replace(named, absent=(layout.printable(path),), reason=f"{path}: {layout.MISSING}")
        if said != str(int(not fake)):
            reason = f"{lists[0]}, line {number}: {said!r} for a video of {folder}; the list has 1 for real"
            row = dataclasses.replace(row, reason=reason)
        found.append(dataclasses.replace(row, split="test"))
    return deepfakebench.find(about, root, found)
