"""Fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import toy


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy paper's project, as the working directory."""
    toy.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
