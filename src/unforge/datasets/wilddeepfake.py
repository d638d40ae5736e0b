"""WildDeepfake: sequences of faces off the net, test part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unforge.types import Card, Found
from unforge.videos import Clips, Manipulation, deepfakebench

VERSION = "1"

CARD = Card(
    name="WildDeepfake (test sequences)",
    images={},
    licence="on request from its authors: research only",
    redistribute=False,
    source="Zi et al.: WildDeepfake, ACM MM 2020. 3,805 real and 3,509 fake sequences of 707 videos; 396 and 410 "
    "sequences are for testing.",
    layout="{real_test,fake_test}/<video>/<...>/<sequence>/*.png, faces of 224 px, as the archives unpack",
    defects=(
        "DeepfakeBench does not read it and the paper does not say how it was grouped: ASSUMPTION(paper): a folder of "
        "images is a sequence and is scored as one; the first folder is the video it was cut from and the person",
        "faces are already cropped, more tightly than DeepfakeBench does: they are taken as they are",
        "the training part is left alone",
    ),
)

STAND_IN = Clips(
    manipulations=(
        Manipulation(
            name="wild_swap", how="swap", area=(0.08, 0.3), feather=(1, 5), detail=(0.5, 1.0), grain=(0.05, 0.5)
        ),
        Manipulation(
            name="wild_warp", how="warp", area=(0.08, 0.25), amplitude=(0.02, 0.06), detail=(0.7, 1.0),
            grain=(0.05, 0.4),
        ),
    ),
    split="test",
    quality=(75, 93),
    resample=(0.85, 1.0),
)  # fmt: skip


def people(manipulation: str, video: str) -> tuple[str, ...]:
    """The video that a sequence was cut from: the first folder of its path."""
    return (f"wilddeepfake:{manipulation or 'real'}_{video.split('_')[0]}",)


LAYOUT = deepfakebench.Layout(
    dataset="wilddeepfake",
    files=("WildDeepfake",),
    labels={"WDF_Real": "", "WDF_Fake": "wild"},
    folders={r"real_test/(.+)": "", r"fake_test/(.+)": "wild"},
    people=people,
)


def find(root: Path) -> Iterator[Found]:
    """Rows of every face of the test sequences."""
    return deepfakebench.find(LAYOUT, root, deepfakebench.tests(deepfakebench.everything(LAYOUT, root)))
