"""Shapes of manipulated regions: (H, W) bool, True inside.

Centres are drawn over the whole image and beyond its borders, so that being near the centre says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

GRID = 64
"""Regions are drawn on a grid of this size and enlarged."""
MARGIN = 0.4
"""How far beyond the border a centre may lie, in radii of the region: less than 1, because a region cut off by the
border is enlarged to its area."""


def draw(shape: str, size: int, area: float, rng: np.random.Generator) -> np.ndarray:
    """A `blob` or `polygon` of about `area` (share of the image, (0, 1)) on an image of size x size px."""
    if shape == "blob":
        return blob(size, area, rng)
    if shape == "polygon":
        return polygon(size, area, rng)
    raise ValueError(f"region shape {shape!r}: blob and polygon are accepted")


def centre(area: float, rng: np.random.Generator) -> np.ndarray:
    """(2,) x, y of the middle of a region of `area` (both in shares of the image)."""
    margin = MARGIN * np.sqrt(area / np.pi)
    return rng.uniform(-margin, 1 + margin, 2)


def blob(size: int, area: float, rng: np.random.Generator) -> np.ndarray:
    """A wobbly ellipse: the level set of that area, its largest connected part."""
    middle, angle, aspect = centre(area, rng), rng.uniform(0, np.pi), rng.uniform(1.0, 1.8)
    axis = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
    x, y = np.meshgrid(axis - np.float32(middle[0]), axis - np.float32(middle[1]))
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    distance = np.sqrt(along * along / aspect + across * across * aspect)
    wobble = cv2.resize(rng.standard_normal((6, 6)).astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_CUBIC)
    field = distance + 0.25 * np.sqrt(area) * wobble
    within = (field <= np.quantile(field, area)).astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(within)
    largest = parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    smooth = cv2.GaussianBlur(largest.astype(np.float32), (3, 3), 0)
    inside: np.ndarray = cv2.resize(smooth, (size, size), interpolation=cv2.INTER_LINEAR) > 0.5
    return inside


def polygon(size: int, area: float, rng: np.random.Generator) -> np.ndarray:
    """A star-shaped polygon of 5 to 10 corners."""
    corners = int(rng.integers(5, 11))
    angles = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * 2 * np.pi / corners + rng.uniform(0, 2 * np.pi)
    radii = rng.uniform(0.6, 1.4, corners)
    unit = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)
    middle, radius = centre(area, rng), np.sqrt(area / np.pi)
    inside = np.zeros((size, size), bool)
    for _ in range(6):
        inside = rasterise([(unit * radius + middle).ravel() * size], size, size)
        share = float(inside.mean())
        if abs(share - area) < 0.1 * area:
            break
        radius *= min(2.0, max(0.5, np.sqrt(area / max(share, 1e-4))))
    return inside


def rasterise(polygons: Sequence[np.ndarray | Sequence[float]], height: int, width: int) -> np.ndarray:
    """(height, width) bool of closed polygons, each x0, y0, x1, y1, ... in pixels, as in COCO's `segmentation`."""
    canvas = np.zeros((height, width), np.uint8)
    for corners in polygons:
        points = np.round((np.asarray(corners, np.float64).reshape(-1, 2) - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(canvas, [points], 1, shift=4)
    return canvas.astype(bool)
