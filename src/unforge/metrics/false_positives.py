"""Share of authentic images that are said to be anything else.

Said: with class probabilities that the most probable class is another than real; else score > 0.5.
Averaging: mean over authentic images; manipulated ones are left out. Empty masks: no matter. Resolution: none.
Lower is better. Source: unforge's own, for the limit that AAP names in Sec. 6 (degraded authentic photographs "risk
being falsely flagged"); one minus the specificity of the image-level decision.
"""

from __future__ import annotations

import numpy as np

from unforge.metrics.definition import Array, Columns, mean

VERSION = "1"


def per_image(columns: Columns) -> Array:
    """`(n,)` 0 or 1, NaN for manipulated images and where nothing is said."""
    return np.where(columns.label == 0, columns.predicted, np.nan)


METRIC = mean("false_positives", per_image, lower=True)
