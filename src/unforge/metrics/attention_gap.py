"""How far the queries' attention on real images is from the class token's, as distributions: lower is closer.

Averaging: the mean over real images (label 0) of the mean absolute difference of equal quantiles of the signals
`query_attention_00`, ... and `cls_attention_00`, ...: of N times the attention over the N patches, so 1 is the even
share. It is the Wasserstein distance of the two distributions, as far as 16 quantiles show it (trapezoids between
them). Undefined for methods without both.
Empty masks: no mask enters. Resolution: that of the patches; where they lie does not enter.
Source: ours; QTFP, supplement, Figure 1 (b) shows the distributions without a number.
"""

from __future__ import annotations

import numpy as np

from unforge.metrics.definition import Array, Columns, mean

VERSION = "1"
SIDES = ("query_attention_", "cls_attention_")


def per_image(columns: Columns) -> Array:
    """Mean absolute difference of equal quantiles; NaN for fake images and for rows without both."""
    found = np.full(len(columns), np.nan)
    for i, row in enumerate(columns.table.column("signals").to_pylist()):
        signals = dict(row or ())
        queries, anchor = ([value for name, value in sorted(signals.items()) if name.startswith(s)] for s in SIDES)
        if columns.label[i] == 0 and len(queries) == len(anchor) > 1 and None not in (*queries, *anchor):
            gaps = np.abs(np.asarray(queries) - np.asarray(anchor))
            found[i] = float(np.mean((gaps[1:] + gaps[:-1]) / 2))
    return found


METRIC = mean("attention_gap", per_image, lower=True)
