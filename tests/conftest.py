"""Shared fixtures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def copy_project(root: Path) -> None:
    """A project root without artefacts: what git holds of params, profiles, papers, stages, sources of data."""
    for name in ("params.yaml", "README.md"):
        shutil.copy(ROOT / name, root / name)
    for name in ("profiles", "papers", "stages"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("dvc.lock", "__pycache__"))
    for source in (ROOT / "data" / "raw").glob("*/SOURCE.json"):
        target = root / "data" / "raw" / source.parent.name / "SOURCE.json"
        target.parent.mkdir(parents=True)
        target.write_text('{\n "source": "stand_in"\n}\n', encoding="utf-8")
    (root / "src").symlink_to(ROOT / "src")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copied project as the working directory."""
    copy_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def real_data() -> Path:
    """Folder with real benchmark images."""
    folder = os.environ.get("UNFORGE_REAL_DATA")
    if not folder:
        pytest.skip("UNFORGE_REAL_DATA is not set")
    return Path(folder)
