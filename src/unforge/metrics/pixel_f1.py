"""Pixel F1 at the threshold 0.5 (strictly above): per image 2 tp / (2 tp + fp + fn), then the mean.

Averaging: mean over manipulated images. Empty masks: left out (authentic images have no F1).
Resolution: original. Source: MVSS-Net's evaluation (per image, label > 0 only), the field's
common reading of "F1"; equals scikit-learn's `f1_score` per image.
"""

from __future__ import annotations

from unforge.metrics.definition import Array, Columns, divide, manipulated, mean

VERSION = "1"


def per_image(columns: Columns) -> Array:
    """`(n,)`, NaN where the mask is empty."""
    hits = 2 * columns.tp
    return manipulated(columns, divide(hits, hits + columns.fp + columns.fn))


METRIC = mean("pixel_f1@0.5", per_image)
