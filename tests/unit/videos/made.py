"""DeepfakeBench's JSON files for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def entry(label: str, frames: Sequence[str], masks: Sequence[str] = ()) -> dict[str, Any]:
    return {"label": label, "frames": list(frames), "masks": list(masks)}


def listed(dataset: str, labels: Mapping[str, Any]) -> str:
    return json.dumps({dataset: labels})


def frames(folder: str, count: int = 2) -> list[str]:
    return [f"{folder}/{place:03d}.png" for place in range(count)]
