"""Images of any size from a generator of small ones: overlapping tiles, which fade into each other.

`renderer`: an image as a tokenizer re-renders it. `scene`: a picture of what a prior sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

OVERLAP = 7
"""Pixels that neighbouring tiles share. Together with tiles of 32 px the step is 25 px: no multiple of JPEG's 8."""
RIM = 2
"""Pixels at a tile's border that are not used: a decoder sees less there, and a grid of lines would show."""
SCENE_OVERLAP = 7 / 16
"""The same for tiles that have nothing to do with each other, as a share of their side."""
COLOUR_SIGMA = 3.0
"""Pixels. What is smoother than this stays the image's own where it is rendered again.

Deviation: a small codebook has few colours, so that tiles differ in their mean and regions show by that alone."""
DETAIL = (0.0, 1.5)
"""How strong the detail of a scene is: some are smooth and some are not, as photographs are. With the same for all,
nearly all files would have one size."""
DETAIL_SIGMA = 6.0
"""Pixels. Of the finer tiles of a scene, what is smoother than this is left out: a coarser tile has said it."""


def renderer(tokenizer: Any) -> Callable[[np.ndarray], np.ndarray]:
    """What maps an (H, W, 3) uint8 image to what a `tokenizers.base.Tokenizer` makes of it: encoded, quantised,
    decoded, on the tokenizer's device. All tiles of an image are one batch."""
    import torch

    size, device = tokenizer.image_size, tokenizer.step.device

    @torch.no_grad()
    def decoded(batch: np.ndarray) -> np.ndarray:
        """(N, S, S, 3) uint8 to float32, 0-255."""
        values = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float().div_(255).contiguous()
        features = tokenizer.quantize(tokenizer.encode(values)).features
        found: np.ndarray = tokenizer.to_image(features).mul(255).permute(0, 2, 3, 1).cpu().numpy()
        return found

    def render(image: np.ndarray) -> np.ndarray:
        return blended(image, decoded, size, OVERLAP)

    return render


def blended(
    image: np.ndarray, made: Callable[[np.ndarray], np.ndarray], size: int, overlap: int, colour: float = COLOUR_SIGMA
) -> np.ndarray:
    """(H, W, 3) uint8 image of which each tile was replaced by what `made` makes of it.

    `made` maps tiles (N, size, size, 3) uint8 to float, 0-255. The image is mirrored at its borders, so that the
    outermost pixels are no border of a tile. Differences smoother than `colour` (sigma, pixels; 0: none) are taken
    back. ValueError for an overlap that `starts` refuses.
    """
    height, width = image.shape[:2]
    rows, columns = starts(height, size, overlap), starts(width, size, overlap)
    padding = ((overlap, rows[-1] + size - overlap - height), (overlap, columns[-1] + size - overlap - width), (0, 0))
    padded = np.pad(image, padding, mode="symmetric")
    tiles = made(np.stack([padded[y : y + size, x : x + size] for y in rows for x in columns]))
    found = joined(tiles, rows, columns, overlap)[overlap : overlap + height, overlap : overlap + width]
    if colour > 0:
        found = found - cv2.GaussianBlur(found - image.astype(np.float32), (0, 0), colour)
    whole: np.ndarray = np.clip(np.rint(found), 0, 255).astype(np.uint8)
    return whole


def scene(draw: Callable[[], np.ndarray], extent: int, strength: float = 1.0) -> np.ndarray:
    """(extent, extent, 3) uint8 picture of small ones: `draw` gives them, (S, S, 3) uint8.

    The first, enlarged, is the whole; then tiles of half the side, a quarter and so on add their detail (times
    `strength`), down to tiles as they were drawn. One image alone, eight times enlarged, would be told by the size of
    its file.
    """
    first = draw()
    size = side = first.shape[0]
    overlap = round(SCENE_OVERLAP * size)
    found = cv2.resize(first, (extent, extent), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    while (side := 2 * side) <= extent:
        places = starts(side, size, overlap)
        tiles = [draw() for _ in places for _ in places]
        canvas = joined(tiles, places, places, overlap)[overlap : overlap + side, overlap : overlap + side]
        detail = canvas - cv2.GaussianBlur(canvas, (0, 0), DETAIL_SIGMA)
        found += strength * cv2.resize(detail, (extent, extent), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


def starts(extent: int, size: int, overlap: int) -> list[int]:
    """First pixels of the tiles that cover `extent` px and `overlap` px before and behind it. ValueError unless
    2 RIM < overlap < size / 2."""
    if not 2 * RIM < overlap < size / 2:
        raise ValueError(f"overlap {overlap} of tiles of {size} px: accepted is more than {2 * RIM} and less than half")
    return list(range(0, extent + overlap, size - overlap))


def joined(
    tiles: Sequence[np.ndarray] | np.ndarray, rows: Sequence[int], columns: Sequence[int], overlap: int
) -> np.ndarray:
    """float32 image of tiles (S, S, 3), row by row, that begin at these pixels; neighbours fade into each other
    linearly over `overlap` px, of which the outermost `RIM` are left out: there the image's border is black."""
    size = tiles[0].shape[0]
    ramp = np.clip((np.arange(size) + 0.5 - RIM) / (overlap - 2 * RIM), 0, 1)
    fade = np.minimum(ramp, ramp[::-1]).astype(np.float32)
    weight = (fade[:, None] * fade[None])[..., None]
    total = np.zeros((rows[-1] + size, columns[-1] + size, 3), np.float32)
    share = np.zeros((*total.shape[:2], 1), np.float32)
    places = [(slice(y, y + size), slice(x, x + size)) for y in rows for x in columns]
    for place, tile in zip(places, tiles, strict=True):
        total[place] += weight * tile
        share[place] += weight
    joint: np.ndarray = total / np.maximum(share, 1e-6)
    return joint
