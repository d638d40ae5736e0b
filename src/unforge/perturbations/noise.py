"""Gaussian noise, independent per pixel and channel.

Source: SparseViT, Figure 6 (levels only drawn): the grid of IMDL-BenCo's robustness test, variances 3 to 23.
TamperTok, Sec. 4.4 and Table 6: variances 5 and 10, asked for by name.
ASSUMPTION(paper): variances are on the 0-255 scale; at 0-1 an image with variance 5 would be noise alone.
Deviation: IMDL-BenCo's library truncates to uint8, which darkens by half a level; here values are rounded.
"""

from __future__ import annotations

import numpy as np

VERSION = "1"
LEVELS: tuple[int, ...] = (3, 7, 11, 15, 19, 23)
UNIT = "variance, 0-255 scale"


def apply(image: np.ndarray, level: int | float, rng: np.random.Generator) -> np.ndarray:
    """An (H, W, 3) uint8 image plus float32 noise N(0, `level`), rounded to nearest (half to even), clipped to 0-255.

    Where nothing is clipped, the noise seen in the result has mean 0 and variance `level` + 1/12.
    Sets the seed of OpenCV's generator of this thread (three times as fast as numpy's).
    """
    import cv2

    if level <= 0:
        raise ValueError(f"noise variance {level!r}: a positive number is accepted")
    noise = np.empty(image.shape, np.float32)
    cv2.setRNGSeed(int(rng.integers(2**31)))
    cv2.randn(noise.reshape(-1), 0.0, float(level) ** 0.5)  # type: ignore[call-overload]
    return cv2.add(image, noise, dtype=cv2.CV_8U)
