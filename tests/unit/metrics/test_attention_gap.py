"""The distance of the queries' attention from the class token's, against SciPy and worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import wasserstein_distance

from unforge import metrics, scores
from unforge.metrics import attention_gap
from unforge.metrics.definition import Columns


def rows(*images: tuple[int, dict[str, float] | None]) -> Columns:
    shared: dict[str, Any] = dict.fromkeys(scores.SCHEMA.names)
    shared |= {"seed": 0, "testset": "cdf_v2", "kind": "unknown", "width": 8, "height": 8, "data": "stand_in"}
    shared |= {"run": "r", "run_sha256": "r", "testset_sha256": "t", "testset_version": "1", "score": 0.5}
    found = [
        shared | {"key": f"k{i}", "unit": f"k{i}", "source": [f"p{i}"], "label": label, "signals": signals}
        for i, (label, signals) in enumerate(images)
    ]
    return Columns.of(pa.Table.from_pylist(found, schema=scores.SCHEMA))


def signals(queries: list[float], anchor: list[float]) -> dict[str, float]:
    found = {f"query_attention_{i:02d}": value for i, value in enumerate(queries)}
    return found | {f"cls_attention_{i:02d}": value for i, value in enumerate(anchor)}


def test_by_hand() -> None:
    columns = rows(
        (0, signals([0.0, 1.0, 4.0], [0.0, 1.0, 2.0])),
        (0, signals([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])),
        (1, signals([0.0, 0.0, 9.0], [1.0, 1.0, 1.0])),
        (0, {"cls_attention_00": 1.0, "cls_attention_01": 1.0}),
        (0, None),
    )
    # trapezoids between differences 0, 0, 2: (0 + 0) / 2 and (0 + 2) / 2
    assert attention_gap.per_image(columns)[:2].tolist() == [0.5, 0.0]
    assert np.isnan(attention_gap.per_image(columns)[2:]).all(), "fake, without queries, without signals"
    assert attention_gap.METRIC.value(columns, np.ones((1, 5))).tolist() == [0.25]
    assert attention_gap.METRIC.lower


def test_many_quantiles_are_the_wasserstein_distance() -> None:
    rng = np.random.default_rng(0)
    one = rng.exponential(size=400)
    places = np.linspace(0, 1, 16)
    found = attention_gap.per_image(
        rows((0, signals(np.quantile(one, places).tolist(), np.quantile(np.sqrt(one), places).tolist())))
    )
    # monotone transforms keep ranks: the distance is the mean of |x - sqrt(x)|, up to 16 quantiles' coarseness
    assert found[0] == pytest.approx(wasserstein_distance(one, np.sqrt(one)), rel=0.25)
    assert metrics.load("attention_gap") is attention_gap.METRIC
