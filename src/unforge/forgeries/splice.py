"""Splice: part of another photograph, found on the web, compressed and enlarged, put into the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from unforge.forgeries.steps import blending, camera, regions
from unforge.types import StandIn

DONOR = "other"
ENLARGED = (1.0, 1.4)


def forge(
    image: np.ndarray,
    donor: np.ndarray | None,
    recipe: StandIn,
    rng: np.random.Generator,
    render: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Forged image (S, S, 3) uint8, its mask (S, S) bool, and what was done.

    `donor` is a clean (S, S, 3) crop of another photograph.
    """
    if donor is None:
        raise ValueError("a splice needs a donor photograph")
    size = image.shape[0]
    factor = float(rng.uniform(*ENLARGED))
    quality = int(rng.integers(camera.WEB_QUALITY[0], camera.WEB_QUALITY[1] + 1))
    part = int(np.ceil(size / factor))
    content = camera.resample(camera.compress(np.ascontiguousarray(donor[:part, :part]), quality), size)
    region = regions.draw(recipe.donors, size, rng.uniform(*recipe.area), rng)
    forged, softened = blending.paste(image, content, region, recipe, rng, match=True)
    return forged, region, {"enlarged": round(size / part, 4), "donor_quality": quality, **softened}


def cut_out(
    image: np.ndarray,
    donor: np.ndarray,
    outline: np.ndarray,
    recipe: StandIn,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The same with an object of a photograph: `donor` (H, W, 3) uint8, `outline` (H, W) bool, true on the object.

    The object is scaled to a share of the image within `recipe.area`, and its middle put anywhere in the image.
    """
    if not outline.any() or outline.shape != donor.shape[:2]:
        raise ValueError(f"outline {outline.shape} with {int(outline.sum())} px cuts nothing out of {donor.shape}")
    size = image.shape[0]
    quality = int(rng.integers(camera.WEB_QUALITY[0], camera.WEB_QUALITY[1] + 1))
    content = camera.compress(donor, quality)
    rows, columns = np.nonzero(outline)
    scale = float(np.sqrt(rng.uniform(*recipe.area) * size * size / len(rows)))
    target = rng.uniform(0, size, 2)
    matrix = np.array(
        [[scale, 0, target[0] - scale * columns.mean()], [0, scale, target[1] - scale * rows.mean()]], np.float32
    )
    moved = cv2.warpAffine(content, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    region = cv2.warpAffine(outline.astype(np.uint8) * 255, matrix, (size, size), flags=cv2.INTER_LINEAR) > 127
    forged, softened = blending.paste(image, moved, region, recipe, rng, match=True)
    return forged, region, {"enlarged": round(scale, 4), "donor_quality": quality, **softened}
