"""Removal: a region is painted over from its surroundings (OpenCV inpainting at half size, then enlarged)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from unforge.forgeries.steps import blending, regions
from unforge.types import StandIn

DONOR = ""
RADIUS = 3


def forge(
    image: np.ndarray,
    donor: np.ndarray | None,
    recipe: StandIn,
    rng: np.random.Generator,
    render: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Forged image (S, S, 3) uint8, its mask (S, S) bool, and what was done. No donor is needed."""
    size = image.shape[0]
    region = regions.draw("blob", size, rng.uniform(*recipe.area), rng)
    algorithm = "telea" if rng.random() < 0.5 else "navier_stokes"
    half = ((size + 1) // 2, (size + 1) // 2)
    small = cv2.resize(image, half, interpolation=cv2.INTER_AREA)
    hole = (cv2.resize(region.astype(np.float32), half, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    flag = cv2.INPAINT_TELEA if algorithm == "telea" else cv2.INPAINT_NS
    content = cv2.resize(cv2.inpaint(small, hole, RADIUS, flag), (size, size), interpolation=cv2.INTER_LINEAR)
    forged, softened = blending.paste(image, content, region, recipe, rng, match=False)
    return forged, region, {"algorithm": algorithm, "radius": RADIUS, **softened}
