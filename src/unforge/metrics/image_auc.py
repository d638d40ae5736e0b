"""Area under the ROC curve of the image-level scores, ties at half credit.

Averaging: over the whole test set. Undefined with one class. Source: scikit-learn's `roc_auc_score`;
IMDL-BenCo's `ImageAUC`.
"""

from __future__ import annotations

from unforge.metrics.definition import Array, Columns, Metric, weighted_auc, with_score

VERSION = "1"


def value(columns: Columns, weights: Array) -> Array:
    scored = with_score(columns)
    return weighted_auc(columns.score[scored], columns.label[scored], weights[:, scored])


METRIC = Metric(id="image_auc", value=value, counts=with_score)
