"""What may be done to an image before its signals are taken: perturbations, and controls for what would betray it.

A test set's name ends in what was done to its images: `imagenet~jpeg60`. It is done at the model's size, after any
resampling, as the paper does, and drawn from a generator of (seed, key, name).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from unforge import seeds
from unforge.provenance import augment, resample

RESAMPLED, MATCHED = "resampled", "matched"
SIGMAS = np.linspace(0.0, 2.0, 41)
"""Blurs that are tried to match sharpness (Gaussian sigma, pixels)."""
_NAME = re.compile(r"(?P<what>[a-z]+)(?P<level>[0-9.]*)")


def parse(testset: str) -> tuple[str, str, float]:
    """Base set, what was done (empty: nothing) and its level: `imagenet~jpeg60` to `imagenet`, `jpeg`, 60.

    ValueError for what is neither an operation of `augment` nor a control.
    """
    base, mark, done = testset.partition("~")
    if not mark:
        return base, "", 0.0
    match = _NAME.fullmatch(done)
    known = (*augment.OPERATIONS, RESAMPLED, MATCHED)
    if match is None or match["what"] not in known or (match["what"] == MATCHED) == bool(match["level"]):
        raise ValueError(f"{testset!r}: after ~ comes one of {', '.join(known)} with its level ({MATCHED} has none)")
    return base, match["what"], float(match["level"] or 0)


def done(images: Sequence[np.ndarray], keys: Sequence[str], testset: str, seed: int) -> list[np.ndarray]:
    """`images` (S,S,3) uint8 after what `testset` says, but for `matched`, which needs something to match."""
    _, what, level = parse(testset)
    if not what:
        return list(images)
    if what == RESAMPLED:
        return [resampled(image, level) for image in images]
    pairs = zip(images, keys, strict=True)
    return [augment.OPERATIONS[what](image, level, seeds.generator(seed, key, testset)) for image, key in pairs]


def resampled(image: np.ndarray, factor: float) -> np.ndarray:
    """(S,S,3) uint8 enlarged by `factor` (bicubic) and brought back to its size as a photograph would be.

    A control: a generated image that went the way of the photographs it is told from.
    """
    from PIL import Image

    side = image.shape[0]
    large = Image.fromarray(image).resize((round(side * factor), round(side * factor)), Image.Resampling.BICUBIC)
    return resample.to_size(np.asarray(large), side)


def sharpness(images: Sequence[np.ndarray]) -> float:
    """Median over images of the mean squared Laplacian of the grey values (0-255)."""
    import cv2

    greys = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in images]
    return float(np.median([np.square(cv2.Laplacian(grey, cv2.CV_32F)).mean() for grey in greys]))


def matched(images: Sequence[np.ndarray], like: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """`images` blurred until they are as sharp as `like`, and the blur (Gaussian sigma, pixels; 0: none was needed).

    A control: decoders of small models blur, which alone would tell their images from photographs.
    """
    import cv2

    wanted = sharpness(like)
    best = list(images)
    for sigma in SIGMAS[1:]:
        if sharpness(best) <= wanted:
            return best, float(sigma - SIGMAS[1])
        best = [cv2.GaussianBlur(image, (0, 0), float(sigma)) for image in images]
    return best, float(SIGMAS[-1])
