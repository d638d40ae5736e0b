"""Score rows for tests, from the columns a test cares about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from unforge import scores


def table(rows: Sequence[dict[str, Any]], seed: int = 0) -> pa.Table:
    """Score rows from the columns a test cares about; keys `k000`, ... and a photograph each."""
    made = []
    for index, row in enumerate(rows):
        key = row.get("key", f"k{index:03}")
        fixed = {"key": key, "unit": key, "source": [f"photo-{key}"], "seed": seed, "testset": "set", "label": 1}
        fixed |= {"kind": "splice", "width": 10, "height": 10, "data": "stand_in", "run": "run"}
        made.append({**fixed, "run_sha256": "", "testset_sha256": "", "testset_version": "1", **row})
    return scores.table(made, {"run": "run"})


def counts(tp: int, fp: int, fn: int, tn: int, **more: Any) -> dict[str, Any]:
    return {"tp": tp, "fp": fp, "fn": fn, "tn": tn, "label": int(tp + fn > 0), **more}


def scored(n: int, seed: int, step: float | None = None) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
    """Rows with noisy scores (rounded to `step` for ties), their labels and scores."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    score = np.clip(rng.normal(0.4 + 0.2 * label, 0.2), 0, 1)
    score = (np.round(score / step) * step if step else score).astype(np.float32)
    rows = [{"label": int(a), "score": float(b)} for a, b in zip(label, score, strict=True)]
    return rows, label, score
