"""History: the control. The same content in place; only its sensor noise is lost and it was compressed once more.

Nothing is moved, so neither meaning nor borders can show it. Never trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from unforge.forgeries.steps import blending, camera, regions
from unforge.types import StandIn

DONOR = "same"


def forge(
    image: np.ndarray,
    donor: np.ndarray | None,
    recipe: StandIn,
    rng: np.random.Generator,
    render: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Forged image (S, S, 3) uint8, its mask (S, S) bool, and what was done.

    `donor` is the scene of `image` (S, S, 3) before the camera's noise.
    """
    if donor is None:
        raise ValueError("history needs the clean scene of the image as its donor")
    quality = int(rng.integers(camera.WEB_QUALITY[0], camera.WEB_QUALITY[1] + 1))
    region = regions.draw("blob", image.shape[0], rng.uniform(*recipe.area), rng)
    forged, softened = blending.paste(image, camera.compress(donor, quality), region, recipe, rng, match=False)
    return forged, region, {"donor_quality": quality, **softened}
