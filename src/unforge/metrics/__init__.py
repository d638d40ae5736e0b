"""The numbers of the tables, named by definition. One file per definition; drop a file in to add one.

A module defines `VERSION` and `METRIC`; its docstring states averaging, empty masks, resolution and
source. Every pixel count is taken at the image's original resolution with the threshold strictly
above 0.5, on the whole image (no border is ignored).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import pyarrow as pa

from unforge.metrics import bootstrap
from unforge.metrics.bootstrap import Difference, Estimate
from unforge.metrics.definition import Columns, Metric

__all__ = [
    "Columns",
    "Difference",
    "Estimate",
    "Metric",
    "average",
    "estimate",
    "load",
    "module",
    "names",
    "of_columns",
    "paired",
]

Part = tuple[Sequence[pa.Table], str]
"""Score rows of one table row on one test set, one table per seed, and the metric id of the column."""


@cache
def _modules() -> dict[str, ModuleType]:
    found = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {m.METRIC.id: m for m in found if hasattr(m, "METRIC")}


def names() -> list[str]:
    """Metric ids, sorted."""
    return sorted(_modules())


def module(metric_id: str) -> ModuleType:
    """The module of a metric: its `VERSION`, its docstring. ValueError with near matches if unknown."""
    known = _modules()
    if metric_id not in known:
        near = difflib.get_close_matches(metric_id, known, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(names())}"
        raise ValueError(f"no metric is called {metric_id!r}{hint}")
    return known[metric_id]


def load(metric_id: str) -> Metric:
    """The metric of that id (`pixel_f1@0.5`). ValueError with near matches if unknown."""
    metric: Metric = module(metric_id).METRIC
    return metric


def estimate(rows: Sequence[pa.Table], metric_id: str, seed: int, replicates: int = 1000) -> Estimate:
    """A metric's value with its interval.

    `rows`: score rows of one run on one test set, one table per seed, all of the same images. The
    value is the mean over the seeds. ValueError when the images differ or the metric is unknown.
    """
    return bootstrap.average([(rows, load(metric_id))], seed, replicates)


def average(parts: Sequence[Part], seed: int, replicates: int = 1000) -> Estimate:
    """Mean over several columns (an AVG column), with its interval; `n` is the sum."""
    return bootstrap.average([(rows, load(metric_id)) for rows, metric_id in parts], seed, replicates)


def of_columns(columns: Sequence[Sequence[Part]], seed: int, replicates: int = 1000) -> Estimate:
    """Mean of columns that may be of different metrics, each the mean of its parts, with its interval."""
    loaded = [[(rows, load(metric_id)) for rows, metric_id in parts] for parts in columns]
    return bootstrap.of_columns(loaded, seed, replicates)


def paired(left: Sequence[Part], right: Sequence[Part], seed: int, replicates: int = 1000) -> Difference:
    """Mean of the left columns minus mean of the right ones on the same images, for claims.

    Bootstrap over photographs (jointly for both sides) and over seeds (each side its own).
    """
    return bootstrap.paired(
        [(rows, load(metric_id)) for rows, metric_id in left],
        [(rows, load(metric_id)) for rows, metric_id in right],
        seed,
        replicates,
    )
