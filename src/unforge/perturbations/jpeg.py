"""JPEG compression.

Source: SparseViT, Figure 6 (levels only drawn): the grid of IMDL-BenCo's robustness test, qualities 50 to 100 in
steps of 10. TamperTok, Sec. 4.4 and Table 6: qualities 80 and 70, both on the grid.
Deviation: IMDL-BenCo hands RGB to an encoder that takes BGR, which swaps the weights of red and blue; here the
channel order is right.
"""

from __future__ import annotations

import numpy as np

VERSION = "1"
LEVELS: tuple[int, ...] = (100, 90, 80, 70, 60, 50)
UNIT = "quality 0-100"


def encode(image: np.ndarray, level: int | float, rng: np.random.Generator) -> tuple[bytes, str]:
    """JPEG file (4:2:0, standard tables) of an (H, W, 3) uint8 RGB image at quality `level`, an integer 1-100.

    The bytes are those Pillow writes at this quality. `rng` is not used: compression is deterministic.
    """
    import cv2

    if not 1 <= level <= 100 or level != int(level):
        raise ValueError(f"JPEG quality {level!r}: an integer from 1 to 100 is accepted")
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, int(level)])
    assert done
    return data.tobytes(), "jpg"


def apply(image: np.ndarray, level: int | float, rng: np.random.Generator) -> np.ndarray:
    """The image after compression: (H, W, 3) uint8, RGB."""
    import cv2

    data, _ = encode(image, level, rng)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert decoded is not None
    return decoded
