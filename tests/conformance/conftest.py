"""What the tests of the papers' tables share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unforge import specs


@pytest.fixture(autouse=True)
def _in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])


@pytest.fixture
def text(request: pytest.FixtureRequest) -> list[str]:
    """Lines of the text of the module's `PAPER`, the first at index 1."""
    folder, data = os.environ.get("UNFORGE_PAPERS"), os.environ.get("UNFORGE_REAL_DATA")
    if not folder and not data:
        pytest.skip("neither UNFORGE_PAPERS nor UNFORGE_REAL_DATA is set")
    path = (Path(folder) if folder else Path(str(data)).parent / "papers") / specs.paper(request.module.PAPER).text
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return ["", *path.read_text(encoding="utf-8").splitlines()]
