"""DeeperForensics-1.0: faces of 100 paid actors put into the videos of FaceForensics++."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from unforge.datasets import layout
from unforge.types import Card, Found
from unforge.videos import Clips, Manipulation, deepfakebench

VERSION = "1"
LISTS = ("train.txt", "val.txt", "test.txt")
NO_LIST = "no lists/splits/test.txt: every video counts as test"

CARD = Card(
    name="DeeperForensics-1.0 (test videos, end_to_end)",
    images={},
    licence="DeeperForensics-1.0 terms of use: research only, on request",
    redistribute=False,
    source="Jiang et al., CVPR 2020. 1,000 fake videos without added perturbations (end_to_end), 201 of them for "
    "testing, and 48,475 source videos of 100 actors.",
    layout="{manipulated_videos/end_to_end/frames,source_videos/<actor>/frames}/<video>/NNN.png and "
    "lists/splits/{train,val,test}.txt below DeeperForensics-1.0, or DeeperForensics-1.0.json of DeepfakeBench",
    defects=(
        "real videos have no split; DeepfakeBench lists them in all: each is read once, as test",
        "fakes are made in the videos of FaceForensics++: what shares one with a test video is not learnt from",
        "only end_to_end is read: the other folders are the same videos, perturbed",
    ),
)

STAND_IN = Clips(
    manipulations=(
        Manipulation(
            name="end_to_end", how="swap", area=(0.08, 0.25), feather=(2, 5), colour="spread", membrane=True,
            detail=(0.7, 1.0), grain=(0.1, 0.4),
        ),
    ),
    split="test",
    quality=(85, 97),
    noise=(0.0, 0.7),
)  # fmt: skip


def people(manipulation: str, video: str) -> tuple[str, ...]:
    """000_M101 is video 000 of FaceForensics++ with actor M101's face; a source video shows its actor."""
    fake = re.match(r"(\d{3})_([MW]\d+)", video)
    if manipulation and fake:
        return (f"ffpp:{fake[1]}", f"deeperforensics:{fake[2]}")
    actor = re.match(r"[MW]\d+", video)
    return (f"deeperforensics:{actor[0] if actor else video}",)


LAYOUT = deepfakebench.Layout(
    dataset="deeperforensics",
    files=("DeeperForensics-1.0",),
    labels={"DF_real": "", "DF_fake": "end_to_end"},
    folders={
        r"source_videos/([^/]+/frames/[^/]+)": "",
        r"manipulated_videos/end_to_end/frames/([^/]+)": "end_to_end",
    },
    people=people,
)


def find(root: Path) -> Iterator[Found]:
    """Rows of every frame of the test videos."""
    rows = deepfakebench.everything(LAYOUT, root)
    rows = [dataclasses.replace(row, name=row.name.replace("_frames_", "_")) for row in rows]
    if not any(row.split or row.reason for row in rows):
        rows = _listed(rows, root)
    return deepfakebench.find(LAYOUT, root, deepfakebench.tests(rows))


def _listed(rows: list[deepfakebench.Video], root: Path) -> list[deepfakebench.Video]:
    splits: dict[str, str] = {}
    for path in deepfakebench.named(layout.files(root), *LISTS):
        split = layout.stem(path).lower()
        for line in deepfakebench.text(root, path).splitlines():
            if name := PurePosixPath(line.strip()).stem:
                splits.setdefault(layout.printable(name), split)
    if "test" not in splits.values():
        return [dataclasses.replace(row, note=NO_LIST if row.manipulation else "") for row in rows]
    fakes = {row.name: row for row in rows if row.manipulation}
    found = [row for row in rows if not row.manipulation]
    for name, split in sorted(splits.items()):
        reason = "" if name in fakes else f"{name}: {layout.MISSING}"
        row = fakes.pop(name, deepfakebench.Video(manipulation="end_to_end", name=name, absent=(name,), reason=reason))
        found.append(dataclasses.replace(row, split=split))
    reason = "on none of lists/splits/{train,val,test}.txt"
    return [*found, *(dataclasses.replace(row, reason=reason) for row in fakes.values())]
