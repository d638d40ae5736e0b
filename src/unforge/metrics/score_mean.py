"""Mean of the rows' score, whatever it stands for: scalars that a method gives beside its prediction, in figures.

Averaging: mean over the images that have one. Not a measure of quality.
Empty masks: count as any other. Resolution: none.
Source: TamperTok, Eq. 11 (the mean over the samples of an evaluation set).
"""

from __future__ import annotations

from unforge.metrics.definition import Array, Columns, mean

VERSION = "1"


def per_image(columns: Columns) -> Array:
    """`(n,)`, NaN where there is none."""
    return columns.score


METRIC = mean("score_mean", per_image)
