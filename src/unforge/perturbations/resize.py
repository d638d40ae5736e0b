"""Shrinking, then enlarging back to the original size.

Source: TamperTok, Sec. 4.4 and Table 6: factors 0.75 and 0.5, "up-sample the images with corresponding scaling
factor using bicubic interpolation".
ASSUMPTION(paper): the interpolation of the shrinking step is not given: bicubic too, without antialiasing
(OpenCV's), as the common pipelines have it.
"""

from __future__ import annotations

import numpy as np

VERSION = "1"
LEVELS: tuple[float, ...] = (0.75, 0.5)
UNIT = "factor of the side"


def apply(image: np.ndarray, level: int | float, rng: np.random.Generator) -> np.ndarray:
    """An (H, W, 3) uint8 image scaled by `level`, 0 < level < 1 (sides rounded, at least 1 px), and back.

    `rng` is not used.
    """
    import cv2

    if not 0 < level < 1:
        raise ValueError(f"resize factor {level!r}: a number between 0 and 1 is accepted")
    height, width = image.shape[:2]
    small = cv2.resize(
        image, (max(1, round(width * level)), max(1, round(height * level))), interpolation=cv2.INTER_CUBIC
    )
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
