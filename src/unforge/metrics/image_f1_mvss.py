"""MVSS-Net's image F1: the harmonic mean of sensitivity and specificity, predicted as in `image_f1`.

Not an F1 in the usual sense: it does not depend on the share of manipulated images. Averaging:
over the whole test set. Undefined with one class. Source: MVSS-Net's evaluation.
"""

from __future__ import annotations

import numpy as np

from unforge.metrics.definition import Array, Columns, Metric, divide, weighted_sums, with_prediction

VERSION = "2"


def value(columns: Columns, weights: Array) -> Array:
    scored, truth, flagged = with_prediction(columns), columns.label > 0, columns.predicted > 0
    hits, positives, cleared, negatives = weighted_sums(
        columns, weights, scored & truth & flagged, scored & truth, scored & ~truth & ~flagged, scored & ~truth
    )
    sensitivity, specificity = divide(hits, positives), divide(cleared, negatives)
    both = sensitivity + specificity
    return np.where(both == 0, 0.0, divide(2 * sensitivity * specificity, both))


METRIC = Metric(id="image_f1_mvss", value=value, counts=with_prediction)
