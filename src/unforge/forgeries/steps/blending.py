"""Putting new content into an image so that neither its border nor its colour gives it away."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from unforge.types import StandIn


def soften(region: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W) float32 opacity, [0, 1], of a bool region whose border is blurred by `sigma` pixels.

    Exactly 0 farther than ceil(3 `sigma`) pixels outside the region.
    """
    opacity = region.astype(np.float32)
    if sigma < 0.2:
        return opacity
    side = 2 * int(np.ceil(3 * sigma)) + 1
    return cv2.GaussianBlur(opacity, (side, side), sigma)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W, 3) uint8 image blurred by `sigma` pixels."""
    return image if sigma < 0.2 else cv2.GaussianBlur(image, (0, 0), sigma)


def match_colour(content: np.ndarray, image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """float32 content, shifted so that its mean colour inside the region is the image's."""
    inside = region.astype(np.uint8)
    shift = np.array(cv2.mean(image, inside)[:3]) - np.array(cv2.mean(content, inside)[:3])
    matched: np.ndarray = content + shift.astype(np.float32)
    return matched


def paste(
    image: np.ndarray, content: np.ndarray, region: np.ndarray, recipe: StandIn, rng: np.random.Generator, match: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """The image with `content` (same size) inside `region`, and how the border was softened.

    With `match`, half of the contents get the mean colour of what they cover.
    Pixels farther than ceil(3 feather) px from the region are the image's own.
    """
    feather = round(float(rng.uniform(*recipe.feather)), 3)
    matched = bool(match and rng.random() < 0.5)
    opacity = soften(region, feather)[..., None]
    new = match_colour(content, image, region) if matched else content.astype(np.float32)
    mixed = opacity * new + (1 - opacity) * image
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8), {"feather": feather, "colour_matched": matched}
