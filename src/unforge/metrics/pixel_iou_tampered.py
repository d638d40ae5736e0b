"""Pixel IoU at 0.5 of tampered images alone: per image tp / (tp + fp + fn), then the mean.

Averaging: mean over tampered images. Empty masks: authentic images are left out, and so are fully generated ones,
whose mask is the whole image (`pixel_iou` counts these). Resolution: original. Source: OpenSDI's protocol, which
localises in partly forged images alone.
"""

from __future__ import annotations

from unforge.metrics.definition import Array, Columns, divide, mean, tampered

VERSION = "1"


def per_image(columns: Columns) -> Array:
    """`(n,)`, NaN for images that were not tampered with."""
    return tampered(columns, divide(columns.tp, columns.tp + columns.fp + columns.fn))


METRIC = mean("pixel_iou@tampered", per_image)
