"""Regenerated: a region is what an autoencoder makes of the same place, as diffusion inpainting leaves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from unforge.forgeries.steps import blending, regions
from unforge.types import StandIn

DONOR = ""
CONTEXT = 16
"""Pixels around the region that the autoencoder sees as well."""


def forge(
    image: np.ndarray,
    donor: np.ndarray | None,
    recipe: StandIn,
    rng: np.random.Generator,
    render: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Forged image (S, S, 3) uint8, its mask (S, S) bool, and what was done.

    `render` maps an (H, W, 3) uint8 image to its reconstruction of the same shape.
    """
    if render is None:
        raise ValueError("regenerated regions need an autoencoder: pass render=backbones.load(directory).render")
    region = regions.draw("blob", image.shape[0], rng.uniform(*recipe.area), rng)
    rows, columns = np.nonzero(region)
    box = (
        slice(max(0, int(rows.min()) - CONTEXT), int(rows.max()) + 1 + CONTEXT),
        slice(max(0, int(columns.min()) - CONTEXT), int(columns.max()) + 1 + CONTEXT),
    )
    content = image.copy()
    content[box] = render(np.ascontiguousarray(image[box]))
    forged, softened = blending.paste(image, content, region, recipe, rng, match=False)
    return forged, region, {"context": CONTEXT, **softened}
