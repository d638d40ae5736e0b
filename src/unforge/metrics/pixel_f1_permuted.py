"""Pixel F1 at 0.5, the better of the map and its inverse per image, then the mean.

The inverse swaps tp with fn and fp with tn (so a probability of exactly 0.5 is positive there).
Averaging: mean over manipulated images. Empty masks: left out. Resolution: original.
Source: TruFor's evaluation ("permuted" metrics), which leaves the border of the mask out; we do not.
"""

from __future__ import annotations

import numpy as np

from unforge.metrics.definition import Array, Columns, divide, manipulated, mean

VERSION = "1"


def per_image(columns: Columns) -> Array:
    """`(n,)`, NaN where the mask is empty."""
    plain = divide(2 * columns.tp, 2 * columns.tp + columns.fp + columns.fn)
    inverse = divide(2 * columns.fn, 2 * columns.fn + columns.tn + columns.tp)
    return manipulated(columns, np.maximum(plain, inverse))


METRIC = mean("pixel_f1_permuted", per_image)
