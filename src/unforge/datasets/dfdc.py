"""DFDC: the public test videos of the Deepfake Detection Challenge."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from unforge.datasets import layout
from unforge.types import Card, Found
from unforge.videos import Clips, Manipulation, deepfakebench

VERSION = "1"
LABELS = {"0": False, "1": True, "real": False, "fake": True, "false": False, "true": True}
UNLABELLED = "neither labels.csv nor metadata.json says whether it is real"

CARD = Card(
    name="DFDC (test videos)",
    images={},
    licence="DFDC terms: research only, with an account",
    redistribute=False,
    source="Dolhansky et al.: The DeepFake Detection Challenge dataset, 2020. 5,000 test videos, half of them fake; "
    "the training set has 128,154.",
    layout="test/frames/<video>/NNN.png with test/labels.csv (filename,label) or metadata.json, or DFDC.json of "
    "DeepfakeBench; videos below a folder train are left alone",
    defects=(
        "DeepfakeBench's JSON has empty or overwritten parts (issues 71 and 119): a video without frames or label is "
        "rejected, and a labelled one whose frames are not there too",
        "test videos do not say what they were made of: each is a person of its own",
    ),
)

STAND_IN = Clips(
    manipulations=(
        Manipulation(
            name="DFAE", how="swap", area=(0.05, 0.2), feather=(1, 4), detail=(0.6, 1.0), grain=(0.1, 0.6)
        ),
        Manipulation(
            name="MM", how="warp", area=(0.06, 0.2), amplitude=(0.02, 0.05), detail=(0.8, 1.0), grain=(0.1, 0.6)
        ),
    ),
    split="test",
    quality=(75, 95),
    noise=(0.0, 1.0),
)  # fmt: skip

LAYOUT = deepfakebench.Layout(
    dataset="dfdc",
    files=("DFDC",),
    labels={"DFDC_Real": "", "DFDC_Fake": "DFDC"},
    folders={r"(?:(?!train/).)*test/(?:[^/]+/)?frames/([^/]+)": "DFDC"},
    people=lambda _, video: (f"dfdc:{video}",),
)


def find(root: Path) -> Iterator[Found]:
    """Rows of every frame of the test videos."""
    rows = deepfakebench.everything(LAYOUT, root)
    if not any(row.split or row.reason for row in rows):
        rows = list(_labelled(rows, labels(root)))
    return deepfakebench.find(LAYOUT, root, deepfakebench.tests(rows))


def labels(root: Path) -> dict[str, tuple[bool, str] | str]:
    """Whether a test video is fake, and what it was made of (or ''), by its name; or what is wrong with its label."""
    listing = [path for path in layout.files(root) if "train" not in PurePosixPath(path).parts]
    found: dict[str, tuple[bool, str] | str] = {}
    for path in deepfakebench.named(listing, "metadata.json"):
        entries = deepfakebench.content(root, path)
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: not an object of videos")
        for name, entry in entries.items():
            given = entry if isinstance(entry, dict) else {}
            _add(found, name, given.get("label", given.get("is_fake")), str(given.get("original") or ""), path)
    for path in deepfakebench.named(listing, "labels.csv"):
        for row in deepfakebench.table(root, path):
            _add(found, row.get("filename", ""), row.get("label"), "", path)
    return found


def _add(found: dict[str, tuple[bool, str] | str], file: str, said: Any, original: str, path: str) -> None:
    name, known = PurePosixPath(file).stem, LABELS.get(str(said).casefold())
    if not name:
        return
    before = found.get(name)
    if known is None:
        found[name] = f"{path}: label {said!r} of {file}: accepted are 0, 1, REAL and FAKE"
    elif isinstance(before, tuple) and before[0] != known:
        found[name] = f"{path}: {file}: {deepfakebench.CONFLICT}"
    elif before is None:
        found[name] = (known, PurePosixPath(original).stem)


def _labelled(
    rows: list[deepfakebench.Video], known: dict[str, tuple[bool, str] | str]
) -> Iterator[deepfakebench.Video]:
    there = {row.name for row in rows}
    for row in rows:
        said = known.get(row.name, UNLABELLED)
        if isinstance(said, str):
            yield dataclasses.replace(row, reason=said)
        else:
            yield dataclasses.replace(row, manipulation="DFDC" if said[0] else "")
    for name in sorted(set(known) - there):
        reason = f"{name}: labelled, but its frames are not there"
        yield deepfakebench.Video(manipulation="", name=layout.printable(name), absent=(name,), reason=reason)
