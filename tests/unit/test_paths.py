from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unforge import paths


def test_the_root_is_found_from_below(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "papers" / "sparsevit")
    assert paths.root() == project
    monkeypatch.chdir(project.parent)
    with pytest.raises(FileNotFoundError, match="no unforge project at or above"):
        paths.root()


@pytest.mark.parametrize("name", ["", "Casia", "1casia", "a-b", "../x", "a" * 33, "casia1~jpeg70"])
def test_ids_of_datasets(name: str) -> None:
    with pytest.raises(ValueError, match="is not a dataset id"):
        paths.check_id(name)
    assert paths.check_id("casia1") == "casia1"


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert paths.sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
    assert paths.digest({"a": 1, "b": [2]}) == paths.digest({"b": [2], "a": 1})
    assert paths.digest({"a": 1}) != paths.digest({"a": 1.5})


def test_json_is_stable(tmp_path: Path) -> None:
    value = paths.meta({"b": 1, "ä": 2}, 3, {"y": "1", "x": "2"})
    paths.write_json(tmp_path / "meta.json", value)
    text = (tmp_path / "meta.json").read_text(encoding="utf-8")
    assert json.loads(text) == paths.read_json(tmp_path / "meta.json") == value
    assert text.endswith("}\n")
    assert text.index('"x"') < text.index('"y"')
    assert value["schema_version"] == paths.SCHEMA_VERSION


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "set"
    with paths.writing(target) as folder:
        (folder / "one").write_text("1")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["one"]

    def fail() -> None:
        with paths.writing(target) as folder:
            (folder / "two").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in target.iterdir()] == ["one"]
    with paths.writing(target) as folder:
        (folder / "three").write_text("3")
    assert [path.name for path in target.iterdir()] == ["three"]
    assert [path.name for path in target.parent.iterdir()] == ["set"]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "table.parquet"
    with paths.writing_file(target) as file:
        file.write_text("1")
        assert not target.exists()

    def fail() -> None:
        with paths.writing_file(target) as file:
            file.write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["table.parquet"]


def test_the_next_writer_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from unforge import paths
with paths.writing(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    target = tmp_path / "set"
    source = str(Path(paths.__file__).parents[1])
    zombies: list[subprocess.Popen[bytes]] = []
    for name in ("set", "set~jpeg70"):
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        # never waited for: a zombie keeps its process id, and in a container without an init it is one for ever
        zombie = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": source})
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        zombies.append(zombie)
    assert not target.exists()
    with paths.writing(target) as first, paths.writing(target) as second:
        assert first != second  # one at work is left alone
        assert sorted(path.name for path in tmp_path.iterdir() if "~" in path.name)
        (first / "x").write_text("x")
        (second / "x").write_text("x")
    assert [path.name for path in tmp_path.iterdir() if "~" not in path.name] == ["set"]
    assert [zombie.wait() for zombie in zombies] == [-signal.SIGKILL] * 2
