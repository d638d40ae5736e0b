"""How far real and tampered images lie among each other: of such an image's ten nearest neighbours, the share that is
of the other of these two classes.

Neighbours are taken among all images of the set, fully synthetic ones too, by the Euclidean distance of the signals
`state_0`, `state_1`, ... (what the class head sees), in their own space and in no picture of it. 0: no image has one of
the other class near; classes that are mixed at random give the share of the other class in the set.
Averaging: mean over real and tampered images; the neighbours stay the same in every replicate of the interval.
Empty masks: no matter, they are a class. Resolution: none. Undefined without both classes. Source: unforge's own, for
AAP's Figure 2, which shows entanglement without a number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unforge.metrics.class_acc import truth
from unforge.metrics.definition import Array, Columns, mean

VERSION = "1"
NEIGHBOURS = 10
SIGNAL = "state_"
_ROWS = 512
"""Images whose distances are held at a time."""


def states(columns: Columns) -> Array:
    """`(n, D)` state of each image, its signals in the order of their numbers; NaN where it has none."""
    rows = [dict(row or ()) for row in columns.table.column("signals").to_pylist()]
    names = sorted({name for row in rows for name in row if name.startswith(SIGNAL)}, key=lambda n: (len(n), n))
    return np.asarray([[row.get(name, np.nan) for name in names] for row in rows], dtype=np.float64)


def nearest(points: Array, count: int) -> npt.NDArray[np.intp]:
    """`(n, count)` indices of the nearest other points of each, of equals the first. `count` is below n."""
    squared = np.square(points).sum(1)
    found = []
    for start in range(0, len(points), _ROWS):
        part = points[start : start + _ROWS]
        distance = squared[None] - 2 * part @ points.T + np.square(part).sum(1)[:, None]
        distance[np.arange(len(part)), np.arange(start, start + len(part))] = np.inf
        found.append(np.argsort(distance, axis=1, kind="stable")[:, :count])
    return np.concatenate(found)


def per_image(columns: Columns) -> Array:
    """`(n,)` in [0,1], NaN for fully synthetic images and where there is no state."""
    points, true = states(columns), truth(columns)
    result = np.full(len(columns), np.nan)
    there = np.flatnonzero(~np.isnan(points).any(axis=1)) if points.shape[1] else np.empty(0, dtype=np.intp)
    if not {0, 2} <= set(true[there].tolist()):
        return result
    kinds = true[there]
    around = kinds[nearest(points[there], min(NEIGHBOURS, len(there) - 1))]
    other = np.where(kinds == 0, 2, 0)
    share = (around == other[:, None]).mean(axis=1)
    result[there] = np.where(kinds == 1, np.nan, share)
    return result


METRIC = mean("entanglement", per_image, lower=True)
