"""FaceForensics++ at compression c23: real videos and four manipulations of each, by the official splits."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unforge.datasets import layout
from unforge.types import Card, Found
from unforge.videos import Clips, Manipulation, deepfakebench
from unforge.videos.deepfakebench import Video

VERSION = "1"
MANIPULATIONS = {"FF-DF": "Deepfakes", "FF-F2F": "Face2Face", "FF-FS": "FaceSwap", "FF-NT": "NeuralTextures"}
REAL = r"original_sequences/youtube/c23/frames/([^/]+)"
NO_LIST = "no list of splits: every video counts as test"

CARD = Card(
    name="FaceForensics++ (c23)",
    images={},
    licence="FaceForensics++ terms of use: research only, on request",
    redistribute=False,
    source="Rossler et al., ICCV 2019. 1,000 real and 4 x 1,000 fake videos, 720/140/140 of each for training, "
    "validation and test; DeepfakeBench stores 32 frames of each.",
    layout="{original_sequences/youtube,manipulated_sequences/{Deepfakes,Face2Face,FaceSwap,NeuralTextures}}/c23/"
    "{frames,masks}/<video>/NNN.png below any folder, with FaceForensics++.json of DeepfakeBench (or FF-DF.json, ...), "
    "or the official train.json, val.json and test.json",
    defects=(
        "DeepfakeBench's loader means to take evenly spaced frames and takes the first: which of both is a value of "
        "the profile (policy) and part of the set",
        "DeepfakeBench groups frames by folder name, which 000_003 has in every manipulation: `unit` is the full "
        "identity of a video (`videos.faithful` gives the folder's name)",
        "paths in the JSON have the separator and the folders of another machine: files are found by the end of the "
        "path",
        "without JSON and lists the videos become train and val so that nobody is in both",
        "other compressions (raw, c40) are left alone: they would be other sets",
        "masks that mark nothing or have another size are left out, the frame stays",
    ),
)

SWAPPED, MOVED = (0.08, 0.22), (0.02, 0.05)
STAND_IN = Clips(
    manipulations=(
        Manipulation(
            name="Deepfakes", how="swap", area=SWAPPED, feather=(2, 4), detail=(0.45, 0.75), grain=(0.0, 0.2)
        ),
        Manipulation(
            name="Face2Face", how="warp", area=SWAPPED, amplitude=MOVED, detail=(0.8, 1.0), grain=(0.0, 0.15)
        ),
        Manipulation(
            name="FaceSwap", how="swap", area=SWAPPED, feather=(0.5, 2), colour="spread", detail=(0.8, 1.2),
            grain=(0.0, 0.25),
        ),
        Manipulation(
            name="NeuralTextures", how="warp", area=(0.06, 0.15), amplitude=(0.01, 0.03), detail=(0.6, 0.85),
            grain=(0.0, 0.2),
        ),
    ),
    split="train",
)  # fmt: skip


def people(_: str, video: str) -> tuple[str, ...]:
    """Who is to be seen: 000_003 is the video 000 with what was 003's."""
    numbers = re.match(r"(\d{3})(?:_(\d{3}))?(?!\d)", video)
    return tuple(f"ffpp:{number}" for number in numbers.groups() if number) if numbers else (f"ffpp:{video}",)


LAYOUT = deepfakebench.Layout(
    dataset="faceforensics",
    files=("FaceForensics++", *MANIPULATIONS),
    labels={"FF-real": "", **MANIPULATIONS},
    folders={
        REAL: "",
        **{rf"manipulated_sequences/{name}/c23/frames/([^/]+)": name for name in MANIPULATIONS.values()},
    },
    people=people,
)


def find(root: Path) -> Iterator[Found]:
    """Rows of every frame of train, val and test; ValueError when a person is in two splits."""
    rows = divided(deepfakebench.everything(LAYOUT, root), official(root))
    known = [row for row in rows if row.split or row.reason]
    yield from deepfakebench.find(LAYOUT, root, known)
    undivided = [row for row in rows if not (row.split or row.reason)]
    if undivided:
        found = list(deepfakebench.find(LAYOUT, root, undivided))
        usable = layout.with_validation([row for row in found if row.status != "rejected"], "faceforensics")
        yield from [*usable, *(row for row in found if row.status == "rejected")]


def official(root: Path) -> dict[str, str]:
    """Split of each person by the lists of pairs train.json, val.json and test.json; empty without them.

    ValueError when one is no list of pairs, or a person is on two."""
    splits: dict[str, str] = {}
    for path in deepfakebench.named(layout.files(root), "train.json", "val.json", "test.json"):
        pairs = deepfakebench.content(root, path)
        if not _is_pairs(pairs):
            raise ValueError(f"{path}: not a list of pairs of videos as [['071', '054'], ...]")
        split = layout.stem(path).lower()
        for number in (str(number) for pair in pairs for number in pair):
            if splits.setdefault(f"ffpp:{number}", split) != split:
                raise ValueError(f"{path}: {number} is in {splits[f'ffpp:{number}']} too")
    return splits


def _is_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(number, str) for number in pair) for pair in value
    )


def divided(rows: Sequence[Video], splits: dict[str, str]) -> list[Video]:
    """`rows` with the split of the lists where a row says none; rejected when the lists do not have its people, or
    not in one split. With JSON and lists that differ, rejected too."""
    found = []
    for row in rows:
        if splits and not row.reason:
            theirs = {splits.get(person, "") for person in people(row.manipulation, row.name)}
            split = theirs.pop() if len(theirs) == 1 else ""
            if not split or row.split not in ("", split):
                reason = f"{row.name} is in {row.split or 'no split'}; the lists have {split or 'it in no one split'}"
                row = dataclasses.replace(row, reason=reason)
            else:
                row = dataclasses.replace(row, split=split)
        found.append(row)
    return found


def tests(about: deepfakebench.Layout, root: Path) -> Iterator[Found]:
    """Rows of split test of a set made of the same real videos; all of them, flagged, where nobody says the split."""
    rows = divided(deepfakebench.everything(about, root), official(root))
    rows = [row if row.split or row.reason else dataclasses.replace(row, note=NO_LIST) for row in rows]
    return deepfakebench.find(about, root, deepfakebench.tests(rows))
