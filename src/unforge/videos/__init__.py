"""Videos as frames: which frames are taken, what a video is called, how frames are grouped; recipes of made clips.

Imports nothing that reads files, so that metrics and tables may use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

POLICIES = ("evenly", "first")
ORIGINAL = "original"
"""In place of the manipulation in the unit of a real video."""


def pick(total: int, count: int | None, policy: str) -> list[int]:
    """Places, in order, of at most `count` of a video's `total` frames; None: all of them.

    `evenly`: np.linspace from the first frame to the last, rounded down, each once. `first`: the first ones.
    Source: DeepfakeBench, preprocessing (`evenly`); its loader means to take every so manieth frame, but sets `total`
    to `count` before it divides, so that it takes the `first`. ValueError for another policy or no frames.
    """
    if policy not in POLICIES:
        raise ValueError(f"frame policy {policy!r}: {' and '.join(POLICIES)} are accepted")
    if count is not None and count < 1:
        raise ValueError(f"{count} frames of a video: 1 or more are accepted")
    if count is None or count >= total:
        return list(range(total))
    if policy == "first":
        return list(range(count))
    return [int(place) for place in np.linspace(0, total - 1, count).astype(int)]


def unit(dataset: str, manipulation: str, video: str) -> str:
    """Full identity of a video, so that nothing collides: `faceforensics/Deepfakes/000_003`."""
    return "/".join((dataset, manipulation or ORIGINAL, video))


def faithful(unit: str) -> str:
    """What the released code groups frames by: the name of their folder, `000_003`.

    So 000_003 of Deepfakes and of NeuralTextures become one video, also where data sets are joined.
    Source: DeepfakeBench, `metrics/utils.py`."""
    return unit.rsplit("/", 1)[-1]


def faithful_label(labels: Sequence[int]) -> int:
    """Label of a group of frames in the released code: the mean, rounded down, so that mixed groups are real."""
    return int(np.mean(labels))


def check_disjoint(rows: Iterable[tuple[str, Sequence[str]]], name: str) -> None:
    """ValueError when an identity is in two splits; `rows`: split and identities of each video of the set `name`."""
    splits: dict[str, str] = {}
    for split, identities in rows:
        for identity in identities:
            if splits.setdefault(identity, split) != split:
                raise ValueError(
                    f"{name}: {identity} is in {splits[identity]} and in {split}: splits must not share a person"
                )


@dataclass(frozen=True, kw_only=True)
class Manipulation:
    """What is done to a clip, the same in all its frames: ranges of which each clip draws its values."""

    name: str
    how: Literal["swap", "warp"]
    """`swap`: a region of another photograph; `warp`: the region's own content, displaced."""
    area: tuple[float, float] = (0.08, 0.25)
    """Share of the frame."""
    feather: tuple[float, float] = (1.0, 3.0)
    """Softening of the border (Gaussian sigma, pixels of a 128 px frame)."""
    colour: Literal["own", "mean", "spread"] = "mean"
    """Of swaps: the colour is its own, is given the mean of what it covers, or mean and spread."""
    membrane: bool = False
    """The difference at the border is spread over the region, as Poisson blending does."""
    detail: tuple[float, float] = (0.5, 1.0)
    """Resolution that the new content goes through, as a share of the frame's; 1: its own."""
    amplitude: tuple[float, float] = (0.02, 0.05)
    """Of warps: largest displacement (share of the frame's side)."""
    grain: tuple[float, float] = (0.0, 0.3)
    """Noise of the new content, as a share of the camera's: at 1 its noise gives nothing away."""
    quality: tuple[int, int] | None = (40, 85)
    """JPEG quality that new content was stored with before; None: it was not."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Recipe for a set of short clips made from photographs; no faces.

    A clip is a slow pan and zoom over one place of one photograph: same camera in all frames, new noise in each,
    stored as JPEG. Real and fake clips differ in the manipulated region alone.
    """

    manipulations: tuple[Manipulation, ...]
    """Fake clips are shared out among them equally."""
    split: Literal["train", "test"]
    """`train`: photographs of the pool's `train` and `val`, each clip marked with its own."""
    authentic: float = 0.5
    """Share of real clips."""
    sensor: tuple[float, float] = (2.0, 4.0)
    """Noise of the camera at mid grey (sigma, 0-255), one value per clip.

    More than still images get: with 1.2-3 what localises forgeries told fake clips at AUC .66 (200 frames)."""
    quality: tuple[int, int] = (88, 97)
    """JPEG quality (0-100) of the stored frames; one value per clip."""
    noise: tuple[float, float] = (0.0, 0.0)
    """Noise on whole frames before they are stored (sigma, 0-255)."""
    resample: tuple[float, float] = (1.0, 1.0)
    """Resolution that whole frames go through before they are stored, as a share of their own."""
