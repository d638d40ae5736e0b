"""Copy-move: part of the image, turned, scaled and sometimes mirrored, put elsewhere in it, once to three times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from unforge.forgeries.steps import blending, regions
from unforge.types import StandIn

DONOR = ""
COPIES = (0.6, 0.3, 0.1)
"""Probability of one, two, three copies."""
SCALED = (0.8, 1.25)
TURNED = (5.0, 45.0)
"""Degrees, either way."""
TRIES = 10


def forge(
    image: np.ndarray,
    donor: np.ndarray | None,
    recipe: StandIn,
    rng: np.random.Generator,
    render: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Forged image (S, S, 3) uint8, the mask (S, S) bool of the copies (not of what was copied), what was done."""
    size = image.shape[0]
    wanted = float(rng.uniform(*recipe.area))
    count = 1 + int(rng.choice(len(COPIES), p=COPIES))
    scales = rng.uniform(*SCALED, count)
    original = regions.draw("blob", size, wanted / float(np.sum(scales**2)), rng)
    taken, mask = original.copy(), np.zeros((size, size), bool)
    content, copies = image, []
    for scaled in scales:
        copy = min(
            (_place(original, taken, float(scaled), rng) for _ in range(TRIES)), key=lambda candidate: candidate[0]
        )
        _, matrix, region, values = copy
        moved = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        content = np.where(region[..., None], moved, content)
        taken |= region
        mask |= region
        copies.append({**values, "matrix": [[round(float(v), 4) for v in row] for row in matrix]})
    forged, softened = blending.paste(image, content, mask, recipe, rng, match=False)
    return forged, mask, {"copies": copies, **softened}


def _place(
    original: np.ndarray, taken: np.ndarray, scaled: float, rng: np.random.Generator
) -> tuple[float, np.ndarray, np.ndarray, dict[str, Any]]:
    """One way to copy `original`, `scaled`: how bad it is, its matrix (from the source), its region, its parameters.

    Bad is to cover what was copied or another copy, and to lose more than half beyond the border.
    """
    size = original.shape[0]
    turned = float(rng.uniform(*TURNED)) * (1 if rng.random() < 0.5 else -1)
    mirrored = bool(rng.random() < 0.2)
    target = regions.centre(float(original.mean()) * scaled**2, rng) * size
    rows, columns = np.nonzero(original)
    middle = np.array([columns.mean(), rows.mean()])
    cosine, sine = scaled * np.cos(np.radians(turned)), scaled * np.sin(np.radians(turned))
    linear = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    matrix = np.concatenate([linear, (target - linear @ middle)[:, None]], axis=1)
    region = cv2.warpAffine(original.astype(np.uint8) * 255, matrix, (size, size), flags=cv2.INTER_LINEAR) > 127
    area = float(region.sum())
    expected = original.sum() * scaled**2
    badness = float((region & taken).sum()) / max(area, 1.0) + max(0.0, 0.5 - area / expected)
    return badness, matrix, region, {"turned": round(turned, 3), "scaled": round(scaled, 4), "mirrored": mirrored}
