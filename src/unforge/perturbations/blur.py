"""Gaussian blur.

Source: SparseViT, Figure 6 (levels only drawn): the grid of IMDL-BenCo's robustness test, kernels 3 to 23 px;
sigma follows from the kernel by OpenCV's rule, as there.
"""

from __future__ import annotations

import numpy as np

VERSION = "1"
LEVELS: tuple[int, ...] = (3, 7, 11, 15, 19, 23)
UNIT = "kernel size, pixels"


def apply(image: np.ndarray, level: int | float, rng: np.random.Generator) -> np.ndarray:
    """An (H, W, 3) uint8 image blurred with an odd kernel of `level` x `level` pixels, borders mirrored.

    sigma = 0.3 ((level - 1) / 2 - 1) + 0.8 pixels. `rng` is not used.
    """
    import cv2

    if level < 3 or level % 2 != 1:
        raise ValueError(f"blur kernel {level!r}: an odd integer from 3 is accepted")
    return cv2.GaussianBlur(image, (int(level), int(level)), 0)
