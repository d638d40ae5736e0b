"""Pixel IoU of the manipulated region at 0.5 (strictly above): per image tp / (tp + fp + fn), then the mean.

Averaging: mean over manipulated images. Empty masks: left out. Resolution: original.
Source: as `pixel_f1@0.5`; equals scikit-learn's `jaccard_score` per image.
"""

from __future__ import annotations

from unforge.metrics.definition import Array, Columns, divide, manipulated, mean

VERSION = "1"


def per_image(columns: Columns) -> Array:
    """`(n,)`, NaN where the mask is empty."""
    return manipulated(columns, divide(columns.tp, columns.tp + columns.fp + columns.fn))


METRIC = mean("pixel_iou", per_image)
