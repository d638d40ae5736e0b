"""F1 of the class "manipulated" over images: 2 tp / (2 tp + fp + fn).

Predicted: score > 0.5; with class probabilities that the most probable class is another than real.

Averaging: over the whole test set. Undefined without manipulated images. Source: IMDL-BenCo's
`ImageF1`; equals scikit-learn's `f1_score` of the labels.
"""

from __future__ import annotations

import numpy as np

from unforge.metrics.definition import Array, Columns, Metric, divide, weighted_sums, with_prediction

VERSION = "2"


def value(columns: Columns, weights: Array) -> Array:
    scored, truth, flagged = with_prediction(columns), columns.label > 0, columns.predicted > 0
    hits, wrong, positives = weighted_sums(
        columns, weights, scored & truth & flagged, scored & ~truth & flagged, scored & truth
    )
    return np.where(positives > 0, divide(2 * hits, hits + wrong + positives), np.nan)


METRIC = Metric(id="image_f1", value=value, counts=with_prediction)
