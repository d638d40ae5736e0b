"""Pixel F1 at 0.5 as IMDL-BenCo averages it: 1e-8 in precision, recall and F1, all images.

Averaging: mean over all images. Empty masks: an authentic image counts as 0, even one predicted
perfectly, so a test set with authentic images cannot reach 1. Resolution: original (IMDL-BenCo: resized
to 512 or padded to 1024). Source: IMDL-BenCo's `PixelF1`, which SparseViT's and OpenSDI's code uses.
"""

from __future__ import annotations

from unforge.metrics.definition import Array, Columns, mean

VERSION = "1"
EPSILON = 1e-8


def per_image(columns: Columns) -> Array:
    """`(n,)`, NaN where the method gave no mask."""
    precision = columns.tp / (columns.tp + columns.fp + EPSILON)
    recall = columns.tp / (columns.tp + columns.fn + EPSILON)
    return 2 * precision * recall / (precision + recall + EPSILON)


METRIC = mean("pixel_f1_benco", per_image)
