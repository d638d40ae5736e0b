"""Share of images that are rightly called authentic or not.

Score > 0.5 against the label; with class probabilities whether the most probable class is another than real (a
generated image called tampered is right: `class_acc@total` tells three classes apart).
Averaging: mean over all scored images (overall accuracy, not the mean over classes).
Source: IMDL-BenCo's `ImageAccuracy`; OpenSDI's "Acc".
"""

from __future__ import annotations

import numpy as np

from unforge.metrics.definition import Array, Columns, mean

VERSION = "2"


def per_image(columns: Columns) -> Array:
    """`(n,)` 0 or 1, NaN where the method gave no image-level score."""
    return np.where(np.isnan(columns.predicted), np.nan, columns.predicted == columns.label)


METRIC = mean("image_acc", per_image)
