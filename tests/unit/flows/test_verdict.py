"""A remembered verdict holds exactly as long as nothing that it rests on is touched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import verdict, walk

NAMED = ["code.py", "out"]
LATER = 2**62
GRAPH = {"upstream": {"a": [], "b": ["a"]}, "pool": {"b": "gpu"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A code file, a folder of outputs, definitions, and something nobody names."""
    for name in ("code.py", "out/deep/shard.tar", "dvc.yaml", "papers/one/dvc.yaml", "params.yaml", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    verdict.keep(tmp_path, GRAPH, NAMED, LATER)
    return tmp_path


@pytest.mark.parametrize("gone", [False, True])
def test_what_is_touched_while_dvc_looks_is_not_remembered(root: Path, gone: bool) -> None:
    (root / verdict.FILE).unlink()
    begin = time.time_ns()
    if gone:
        (root / "out/deep/shard.tar").unlink()
        (root / "out/deep").rmdir()
        (root / "out").rmdir()
    else:
        edit(root / "out/deep/shard.tar")
    verdict.keep(root, GRAPH, NAMED, LATER if gone else begin)
    assert verdict.recall(root) is None
    assert not (root / verdict.FILE).exists()


def test_where_no_record_can_be_written_the_look_goes_on(root: Path) -> None:
    (root / verdict.FILE).unlink()
    (root / verdict.FILE).with_suffix(".tmp").mkdir()
    verdict.keep(root, GRAPH, NAMED, LATER)
    assert verdict.recall(root) is None


def edit(path: Path) -> None:
    """Another content of the same length; the time moves as an edit's does."""
    state = path.stat()
    path.write_text(path.read_text()[::-1])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))


def test_what_was_kept_is_recalled_and_nothing_else(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert verdict.recall(root) == GRAPH
    edit(root / "notes.txt")
    assert verdict.recall(root) == GRAPH
    assert verdict.recall(tmp_path_factory.mktemp("none")) is None


@pytest.mark.parametrize(
    "touch",
    [
        lambda root: edit(root / "code.py"),
        lambda root: edit(root / "out/deep/shard.tar"),
        lambda root: (root / "out/deep/more.tar").write_text(""),
        lambda root: (root / "out/deep/shard.tar").unlink(),
        lambda root: edit(root / "papers/one/dvc.yaml"),
        lambda root: edit(root / "params.yaml"),
        lambda root: (root / "papers/dvc.lock").write_text(""),
        lambda root: (root / "new.dvc").write_text(""),
        lambda root: (root / ".dvc/config.local").write_text(""),
        lambda root: os.replace(root / "notes.txt", root / "code.py"),
    ],
)
def test_any_change_ends_it(root: Path, touch: Callable[[Path], Any]) -> None:
    touch(root)
    assert verdict.recall(root) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digest": 1}', '{"digest": 1, "paths": 3, "graph": {}}'])
def test_a_record_that_is_broken_counts_for_nothing(root: Path, text: str) -> None:
    (root / verdict.FILE).write_text(text)
    assert verdict.recall(root) is None


def test_another_dvc_is_asked_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "version", lambda name: "4.0.0")
    assert verdict.recall(root) is None


def test_a_walk_asks_dvc_only_when_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.repo import Repo

    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    copy = {"cmd": "cat code.txt > out.txt", "deps": ["code.txt"], "outs": ["out.txt"], "meta": {"pool": "gpu"}}
    last = {"cmd": "cat out.txt > last.txt", "deps": ["out.txt"], "outs": ["last.txt"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"copy": copy, "last": last}}))
    (tmp_path / "code.txt").write_text("1\n")
    assert set(walk.walk(tmp_path, report=lambda _: None).ran) == {"copy", "last"}
    time.sleep(0.1)  # what was written just now is not remembered
    asked = walk.read_graph(tmp_path)

    count: list[int] = []
    start = Repo.__init__
    monkeypatch.setattr(Repo, "__init__", lambda self, *args, **more: count.append(1) or start(self, *args, **more))
    assert walk.read_graph(tmp_path) == asked
    again = walk.walk(tmp_path, ["last"], report=lambda _: None)
    assert (again.ran, again.fresh, count) == ({}, 2, [])

    (tmp_path / "code.txt").write_text("2\n")
    assert walk.read_graph(tmp_path).stale == {"copy"}
    assert count
    # what is stale is not remembered
    assert walk.read_graph(tmp_path).stale == {"copy"}
    assert set(walk.walk(tmp_path, report=lambda _: None).ran) == {"copy", "last"}
    assert (tmp_path / "last.txt").read_text() == "2\n"
