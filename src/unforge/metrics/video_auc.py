"""Area under the ROC curve over units (videos): a video's score is the mean of its frames' scores.

Averaging: over the units of the test set; a unit is manipulated when one of its frames is. Images
without a video are units of their own, and the value is then `image_auc`. Undefined with one class.
Source: DeepfakeBench's and LAA-Net's video-level AUC.
"""

from __future__ import annotations

import numpy as np

from unforge.metrics.definition import Array, Columns, Metric, weighted_auc, with_score

VERSION = "1"


def value(columns: Columns, weights: Array) -> Array:
    scored = np.flatnonzero(with_score(columns))
    _, first, unit, frames = np.unique(columns.unit[scored], return_index=True, return_inverse=True, return_counts=True)
    score = np.bincount(unit, weights=columns.score[scored]) / frames
    label = np.zeros(len(first), dtype=np.int64)
    np.maximum.at(label, unit, columns.label[scored])
    return weighted_auc(score, label, weights[:, scored[first]])


METRIC = Metric(id="video_auc", value=value, counts=with_score)
