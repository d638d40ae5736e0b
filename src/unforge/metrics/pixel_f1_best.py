"""Pixel F1 at each image's own best threshold, then the mean: what an oracle would reach.

Averaging: mean over manipulated images. Empty masks: left out. Resolution: original; each image's
value is taken when it is scored, within 1e-4 of the largest F1 over all thresholds. Source: TruFor's
evaluation ("best" columns).
"""

from __future__ import annotations

from unforge.metrics.definition import Array, Columns, mean

VERSION = "1"


def per_image(columns: Columns) -> Array:
    """`(n,)`, NaN where the mask is empty."""
    return columns.pixel_f1_best


METRIC = mean("pixel_f1_best", per_image)
