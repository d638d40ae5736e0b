"""Dynamic tiling: an image as a grid of square tiles whose shape is near its own, and a thumbnail of the whole.

Source: InternVL 1.5, Sec. "Dynamic High-Resolution"; InternVL2.5's released preprocessing.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.lru_cache(maxsize=64)
def grids(most: int, least: int = 1) -> tuple[tuple[int, int], ...]:
    """(columns, rows) of `least` to `most` tiles, by number of tiles; of equals, fewer columns first."""
    found = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if least <= c * r <= most]
    return tuple(sorted(found, key=lambda grid: (grid[0] * grid[1], grid)))


def choose(height: int, width: int, size: int, most: int, least: int = 1) -> tuple[int, int]:
    """(columns, rows) for an image of `height` x `width` pixels: the grid of the nearest aspect ratio.

    Of grids with the same ratio the larger is taken if the image has more than half of its pixels; `size`: side of a
    tile. ValueError unless 1 <= least <= most and the image has pixels.
    """
    if min(height, width) < 1 or not 1 <= least <= most:
        raise ValueError(f"image {height}x{width}, {least} to {most} tiles: give at least one pixel and one tile")
    best, nearest = (1, 1), float("inf")
    for columns, rows in grids(most, least):
        distance = abs(width / height - columns / rows)
        if distance < nearest:
            best, nearest = (columns, rows), distance
        elif distance == nearest and 2 * height * width > size * size * columns * rows:
            best = (columns, rows)
    return best


def cut(image: Tensor, size: int, most: int, thumbnail: bool = True) -> Tensor:
    """(T,3,size,size) of one image (3,H,W) in [0,1]: its tiles row by row, then the thumbnail when there are several.

    The image is stretched to whole tiles (bicubic with antialiasing, clipped), as its proportions demand.
    """
    columns, rows = choose(image.shape[1], image.shape[2], size, most)
    whole = stretched(image, rows * size, columns * size)
    tiles = whole.view(3, rows, size, columns, size).permute(1, 3, 0, 2, 4).reshape(rows * columns, 3, size, size)
    if len(tiles) == 1 or not thumbnail:
        return tiles
    return torch.cat([tiles, stretched(image, size, size)[None]])


def stretched(image: Tensor, height: int, width: int) -> Tensor:
    """(3,height,width) of (3,H,W) in [0,1]."""
    if tuple(image.shape[1:]) == (height, width):
        return image
    resized = F.interpolate(image[None], size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)
