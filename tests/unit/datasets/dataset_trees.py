"""Tiny images and masks for the tests of datasets."""

from __future__ import annotations

import io
import zlib

import numpy as np
from PIL import Image

SIZE = (48, 32)


def picture(name: str, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(height, width, 3) of noise that depends on the name; `size` is width, height."""
    seed = zlib.crc32(name.encode("utf-8", "surrogateescape"))
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def square(size: tuple[int, int] = SIZE) -> np.ndarray:
    """(height, width) uint8 mask, 255 in rows 4 to 11 and columns 8 to 23."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[4:12, 8:24] = 255
    return mask


def encoded(array: np.ndarray, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format=format, **options)
    return stream.getvalue()


FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "tif": "TIFF", "bmp": "BMP"}
