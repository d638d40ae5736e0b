"""DFDCP: the preview of the Deepfake Detection Challenge, its test videos."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from unforge.datasets import layout
from unforge.types import Card, Found
from unforge.videos import Clips, Manipulation, deepfakebench

VERSION = "1"
LIST = "dataset.json"
UNLISTED = f"not in {LIST}"

CARD = Card(
    name="DFDC preview (test videos)",
    images={},
    licence="DFDC terms: research only, with an account",
    redistribute=False,
    source="Dolhansky et al.: The DeepFake Detection Challenge preview dataset, 2019. 1,131 real and 4,113 fake videos "
    "of 66 persons; 276 and 504 are for testing.",
    layout="{method_A,method_B,original_videos}/<...>/frames/<video>/NNN.png (or frames below the first folder) and "
    "dataset.json (label and set of each video), or DFDCP.json of DeepfakeBench",
    defects=(
        "DeepfakeBench uses the test videos for validation too, and its JSON is incomplete (issue 22): only test is "
        "read here, a listed video whose frames are not there is rejected",
        "a video whose label contradicts its folder is rejected",
    ),
)

STAND_IN = Clips(
    manipulations=(
        Manipulation(
            name="method_A", how="swap", area=(0.06, 0.2), feather=(1, 3), detail=(0.5, 0.9), grain=(0.0, 0.3)
        ),
        Manipulation(
            name="method_B", how="warp", area=(0.08, 0.22), amplitude=(0.03, 0.06), detail=(0.7, 1.0), grain=(0.0, 0.3)
        ),
    ),
    split="test",
    quality=(82, 95),
    resample=(0.85, 1.0),
)  # fmt: skip


def people(_: str, video: str) -> tuple[str, ...]:
    """1224068_B_1095385_001 shows the persons 1224068 and 1095385."""
    numbers = list(dict.fromkeys(re.findall(r"(?<!\d)\d{5,}(?!\d)", video)))
    return tuple(f"dfdcp:{number}" for number in numbers) or (f"dfdcp:{video}",)


LAYOUT = deepfakebench.Layout(
    dataset="dfdcp",
    files=("DFDCP",),
    labels={"DFDCP_Real": "", "DFDCP_FakeA": "method_A", "DFDCP_FakeB": "method_B"},
    folders={
        r"original_videos/(?:[^/]+/)*?frames/([^/]+)": "",
        r"method_A/(?:[^/]+/)*?frames/([^/]+)": "method_A",
        r"method_B/(?:[^/]+/)*?frames/([^/]+)": "method_B",
    },
    people=people,
)


def find(root: Path) -> Iterator[Found]:
    """Rows of every frame of the test videos."""
    rows = deepfakebench.everything(LAYOUT, root)
    if not any(row.split or row.reason for row in rows):
        rows = list(_listed(rows, root))
    return deepfakebench.find(LAYOUT, root, deepfakebench.tests(rows))


def _listed(rows: list[deepfakebench.Video], root: Path) -> Iterator[deepfakebench.Video]:
    lists = deepfakebench.named(layout.files(root), LIST)
    if not lists:
        yield from (dataclasses.replace(row, note=f"no {LIST}: every video counts as test") for row in rows)
        return
    entries: Any = deepfakebench.content(root, lists[0])
    if not isinstance(entries, dict):
        raise ValueError(f"{lists[0]}: not an object of videos")
    known = {_place(path): entry for path, entry in entries.items()}
    for row in rows:
        entry = known.pop((row.manipulation, row.name), None)
        if not isinstance(entry, dict):
            yield dataclasses.replace(row, reason=UNLISTED)
        elif str(entry.get("label")).casefold() != ("fake" if row.manipulation else "real"):
            said = f"{lists[0]}: {row.name} is labelled {entry.get('label')!r}"
            yield dataclasses.replace(row, reason=f"{said} and lies among {row.manipulation or 'original'} videos")
        else:
            yield dataclasses.replace(row, split=str(entry.get("set")))
    for (manipulation, name), entry in sorted(known.items()):
        if isinstance(entry, dict) and entry.get("set") == "test":
            reason = f"{name}: {layout.MISSING}"
            yield deepfakebench.Video(manipulation=manipulation, name=name, absent=(name,), reason=reason)


def _place(path: str) -> tuple[str, str]:
    """Manipulation and name of a video by its path in the list."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    manipulation = next((name for name in ("method_A", "method_B") if name in parts), "")
    return manipulation, layout.printable(PurePosixPath(path.replace("\\", "/")).stem)
