"""What is decided before anything is sent."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import publish, store
from tests.unit import toy
from unforge import paths


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit."""
    monkeypatch.chdir(tmp_path)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    (tmp_path / "params.yaml").write_text("profile: small\nseed: 0\n")
    (tmp_path / ".gitignore").write_text("/data/\n")
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "First\n\nand more"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    return tmp_path


def test_the_commit_says_what_is_published(root: Path) -> None:
    about = publish.commit(root)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert about["revision"] == head.strip()
    assert about["subject"] == "First"
    assert about["committed"][:2] == "20"
    (root / "data").mkdir()
    (root / "data" / "ignored").write_text("")
    assert publish.commit(root) == about


@pytest.mark.parametrize("name", ["params.yaml", "new.py", "papers/ours/table_1.yaml"])
def test_a_work_tree_that_differs_is_refused(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("profile: small\nseed: 1\n")
    with pytest.raises(ValueError, match=rf"the work tree differs from commit \w{{12}} in {name}: commit that first"):
        publish.commit(root)


def test_a_folder_without_commits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="git says: fatal"):
        publish.commit(tmp_path)


def test_only_the_active_profile_is_published(root: Path) -> None:
    assert publish.project(None, None) == (root, "small")
    assert publish.project(str(root), "small") == (root, "small")
    with pytest.raises(ValueError, match="profile 'paper': the stages of this commit are those of 'small'"):
        publish.project(root, "paper")
    (root / "params.yaml").unlink()
    with pytest.raises(ValueError, match=r"is no unforge project: it has no params\.yaml"):
        publish.project(root, None)


def test_the_place_is_the_option_or_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNFORGE_PUBLISH", raising=False)
    with pytest.raises(ValueError, match=r"say where to: --to s3://team/reports, or UNFORGE_PUBLISH=s3://team/reports"):
        publish.address(None, "UNFORGE_PUBLISH", "s3://team/reports")
    monkeypatch.setenv("UNFORGE_PUBLISH", "s3://a/b/")
    assert publish.address(None, "UNFORGE_PUBLISH", "s3://team/reports") == "s3://a/b"
    assert publish.address("s3://c", "UNFORGE_PUBLISH", "s3://team/reports") == "s3://c"


def test_rows_of_scores_hold_no_images_and_all_else_may(root: Path) -> None:
    toy.score(root, "toy/catnet/full/s0", "columbia", [0.5])
    folder = root / paths.scores("small", "toy/catnet/full/s0")
    pq.write_table(pa.table({"key": ["a"], "image": [b"JFIF"]}), folder / "samples.parquet")
    (folder / "meta.json").write_text("{}")
    (folder / "overlay.png").write_bytes(b"PNG")
    found = {path.name: publish.has_images(path) for path in folder.iterdir()}
    assert found == {"columbia.parquet": False, "meta.json": False, "samples.parquet": True, "overlay.png": True}


def test_subjects_are_escaped_in_the_list() -> None:
    entry = {"revision": "0" * 40, "committed": "2026-01-01", "subject": "<script>&", "profile": "small"}
    line = publish._line({**entry, "cells": {"match": 3}, "page": "index.html"})
    assert "<td>&lt;script&gt;&amp;</td>" in line
    assert "<script" not in line
    assert f'<a href="{"0" * 40}/index.html">' in line


def test_a_revision_without_a_page_is_listed_by_its_index() -> None:
    index = {"revision": "0" * 40, "committed": "2026-01-01", "subject": "s", "profile": "small"}
    tables = {"toy.table_1": {"match": 3, "cited": 1}, "toy.table_2": {"match": 2}}
    files = [{"path": "claims.md", "size": 10}, {"path": "audit.md", "size": 5}]
    entry = publish._entry({**index, "tables": tables, "files": files})
    assert entry == {**index, "cells": {"match": 5, "cited": 1}, "files": 2, "bytes": 15, "page": "index.json"}
    with_page = [*files, {"path": "index.html", "size": 1}]
    assert publish._entry({**index, "tables": tables, "files": with_page})["page"] == "index.html"


def test_equal_contents_are_equal_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(store.File.of({"b": 1, "a": "é"}, "x").data)
    first = store.File.at(tmp_path / "a.json", "a.json")
    second = store.File.of({"a": "é", "b": 1}, "a.json")
    assert (first.size, first.sha256, first.kind) == (second.size, second.sha256, "application/json")
    assert json.loads(second.data) == {"a": "é", "b": 1}


def test_credentials_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    assert store._masked("http://user:pass@host/ refuses s3cr3t") == "http://host/ refuses ***"


def test_replace_is_for_sets_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        publish.main(["--replace"])
    assert end.value.code == 2
    assert "a published revision is never changed" in capsys.readouterr().err
