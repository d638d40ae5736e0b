"""Tiny image trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unit.datasets.dataset_trees import FORMATS, encoded, picture, square


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """`tree(*names, **{name: array or bytes})`: files below a root; bare names get a picture of their own,
    names with `gt`, `mask` or `forged` in them the square mask."""

    def build(*names: str, contents: dict[str, np.ndarray | bytes | str] | None = None) -> Path:
        root = tmp_path / "set"
        for name, value in {**dict.fromkeys(names), **(contents or {})}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if value is None:
                is_mask = any(word in name.lower() for word in ("gt", "mask", "forged", "segmentation"))
                value = square() if is_mask else picture(name)
            if isinstance(value, np.ndarray):
                value = encoded(value, FORMATS[path.suffix[1:].lower()])
            path.write_bytes(value.encode() if isinstance(value, str) else value)
        return root

    return build
