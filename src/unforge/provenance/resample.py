"""A suspicious image in the size of a model's images.

Resampling changes every pixel, and with it the traces the signals look for: a signal of an image that was not
S x S says less. Source: iar_provenance evaluates images in the model's own size.
ASSUMPTION(paper): it does not say how photographs of other sizes come to it; here by the shorter side, then a
centre crop, as is usual for ImageNet.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_size(image: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) uint8 of `image` (H, W, 3) uint8 RGB.

    An image of that size is given back untouched. A larger one has its shorter side reduced to `size` (bilinear,
    antialiased) and its centre cut out. ValueError for an image smaller than `size`, whose traces cannot be there,
    and for any other kind of array.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image of shape {image.shape} and type {image.dtype}: (H, W, 3) uint8 is needed")
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise ValueError(f"{width}x{height} pixels: the model's images are {size}x{size}, smaller ones say nothing")
    if height == width == size:
        return image
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = Image.fromarray(image).resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    return np.array(square)
