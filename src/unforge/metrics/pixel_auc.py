"""Area under the pixel ROC curve per image, ties at half credit, then the mean.

Averaging: mean over images with both manipulated and authentic pixels. Empty masks: left out
(IMDL-BenCo counts them as 0), full masks too. Resolution: original; each image's value is taken when it is scored,
within 1e-4 of scikit-learn's `roc_auc_score`. Source: IMDL-BenCo's `PixelAUC`, MVSS-Net.
"""

from __future__ import annotations

from unforge.metrics.definition import Array, Columns, mean

VERSION = "1"


def per_image(columns: Columns) -> Array:
    """`(n,)`, NaN where one class of pixels is absent."""
    return columns.pixel_auc


METRIC = mean("pixel_auc", per_image)
