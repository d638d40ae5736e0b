"""Share of images whose class is predicted rightly.

Two classes: score > 0.5 against the label; with class probabilities the most probable class.
Averaging: mean over all scored images (overall accuracy, not the mean over classes).
Source: IMDL-BenCo's `ImageAccuracy`; "Overall Acc" of SIDA and AAP.
"""

from __future__ import annotations

import numpy as np

from unforge.metrics.definition import Array, Columns, mean

VERSION = "1"


def per_image(columns: Columns) -> Array:
    """`(n,)` 0 or 1, NaN where the method gave no image-level score."""
    return np.where(np.isnan(columns.predicted), np.nan, columns.predicted == columns.label)


METRIC = mean("image_acc", per_image)
