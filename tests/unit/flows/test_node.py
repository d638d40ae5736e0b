"""Moving one stage's run between two clones through a DVC remote, which is a folder here, and a node's work tree."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import node, patience, runs, share, walk, workspace
from tests.unit.flows import clones

NEVER = threading.Event()


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "UNFORGE_REMOTE",
        "UNFORGE_REPOSITORY",
        "UNFORGE_WORKSPACE",
        "CUDA_VISIBLE_DEVICES",
        "AWS_ENDPOINT_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(share, "remote", lambda root: "team")  # it takes S3 only; the tests of services have that


def silent(text: str) -> None:
    """Nobody listens."""


def remote(folder: Path, place: Path) -> None:
    (folder / ".dvc" / "config.local").write_text(f"['remote \"team\"']\n    url = {place}\n    verify = true\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head whose cpu stage is done."""
    head = clones.repository(tmp_path_factory.mktemp("made") / "head")
    clones.dvc(head, "repro", "-q", "prepare")
    return head


@pytest.fixture
def pair(made: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A head whose cpu stage is done, a node's clone, and the remote's folder."""
    head = Path(shutil.copytree(made, tmp_path / "head"))
    node_ = clones.clone(head, tmp_path / "node")
    place = tmp_path / "remote"
    for folder in (head, node_):
        remote(folder, place)
    return head, node_, place


def at(folder: Path, action: Callable[..., Any], *arguments: Any) -> Any:
    """One step of a transfer with a clone as the working directory, as the command has it."""
    with contextlib.chdir(folder):
        return action(folder, *arguments)


def objects(place: Path) -> set[str]:
    """Contents of the files on the remote, but for lists of directories and entries of the run-cache."""
    return {p.read_text() for p in (place / "files").rglob("*") if p.is_file() and p.suffix != ".dir"}


def test_a_run_goes_to_a_node_and_comes_back_and_nothing_else_moves(pair: tuple[Path, Path, Path]) -> None:
    head, node_, place = pair
    assert at(head, runs.receive_run, "train") is False
    told = at(head, runs.send_inputs, "train")
    assert objects(place) == {"1\n", "1\n1\n", "words\n"}, "spare.txt is no input of train"
    assert list(told["locks"]["dvc.lock"]) == ["prepare"]
    assert not (place / "runs").exists()

    at(node_, runs.receive_inputs, "train", told)
    assert {p.name for p in (node_ / "data").iterdir()} == {"a", "b"}
    assert (node_ / "words.md").read_text() == "words\n"
    assert not (node_ / "spare.txt").exists()
    assert walk.Runner(node_)("train") == 0
    at(node_, runs.send_run, "train")
    assert objects(place) == {"1\n", "1\n1\n", "words\n", "1\n1\n1\nwords\ncode\n"}
    assert len([p for p in (place / "runs").rglob("*") if p.is_file()]) == 1

    assert at(head, runs.receive_run, "train") is True
    assert walk.Runner(head)("train") == 0
    assert "is cached - skipping run" in walk.log_path(head, "train").read_text()
    assert (head / "model.txt").read_text() == "1\n1\n1\nwords\ncode\n"
    assert "up to date" in clones.dvc(head, "status", "train")


def test_outputs_that_are_left_to_git_come_back_too(pair: tuple[Path, Path, Path]) -> None:
    head, node_, _ = pair
    clones.dvc(head, "repro", "-q", "train")
    told = at(head, runs.send_inputs, "table")
    at(node_, runs.receive_inputs, "table", told)
    assert walk.Runner(node_)("table") == 0
    at(node_, runs.send_run, "table")
    assert at(head, runs.receive_run, "table") is True
    assert walk.Runner(head)("table") == 0
    assert "is cached - skipping run" in walk.log_path(head, "table").read_text()
    table = head / "table.md"
    assert (table.read_text(), table.stat().st_nlink) == ("1\n1\n1\nwords\ncode\n", 1)


def test_data_files_in_git_are_inputs(tmp_path: Path) -> None:
    stages = {"train": {"cmd": "cat raw.bin > model.txt", "deps": ["raw.bin"], "outs": ["model.txt"]}}
    head = clones.repository(tmp_path / "head", stages)
    (head / "raw.bin").write_text("raw\n")
    clones.dvc(head, "add", "-q", "raw.bin")
    clones.commit(head)
    node_ = clones.clone(head, tmp_path / "node")
    for folder in (head, node_):
        remote(folder, tmp_path / "remote")
    told = at(head, runs.send_inputs, "train")
    assert told["locks"] == {}
    at(node_, runs.receive_inputs, "train", told)
    assert (node_ / "raw.bin").read_text() == "raw\n"


def test_what_is_not_committed_is_refused_by_name(pair: tuple[Path, Path, Path]) -> None:
    head, _, place = pair
    (head / "code.txt").write_text("changed\n")
    (head / "new file.txt").write_text("new\n")
    with pytest.raises(ValueError, match=r"code.txt, new file.txt: commit them .* a node checks out the revision"):
        at(head, runs.send_inputs, "train")
    assert not place.exists(), "nothing was sent"
    clones.commit(head)
    at(head, runs.send_inputs, "train")  # dvc.lock and words.md are committed or made


def test_a_node_whose_inputs_differ_says_which(pair: tuple[Path, Path, Path]) -> None:
    head, node_, _ = pair
    told = at(head, runs.send_inputs, "train")
    (node_ / "code.txt").write_text("another\n")
    with pytest.raises(ValueError, match=r"train differs from the head's: code.txt"):
        at(node_, runs.receive_inputs, "train", told)


def test_stages_that_the_run_cache_does_not_take_stay_here(tmp_path: Path) -> None:
    stages = {"train": {"cmd": "date > model.txt", "outs": ["model.txt"], "always_changed": True}}
    head = clones.repository(tmp_path / "head", stages)
    remote(head, tmp_path / "remote")
    with pytest.raises(ValueError, match="train cannot be brought back from a node"):
        at(head, runs.receive_run, "train")
    with pytest.raises(ValueError, match="no stage 'trian'"):
        at(head, runs.receive_run, "trian")


def test_an_object_that_is_cut_short_is_noticed(pair: tuple[Path, Path, Path]) -> None:
    head, node_, place = pair
    told = at(head, runs.send_inputs, "train")
    [victim] = [p for p in (place / "files").rglob("*") if p.is_file() and p.read_text() == "1\n1\n"]
    victim.chmod(0o644)
    victim.write_text("1\n")
    with pytest.raises(OSError, match=r"1 of 4 files could not be fetched whole: .*data/b"):
        at(node_, runs.receive_inputs, "train", told)
    victim.write_text("1\n1\n")
    at(node_, runs.receive_inputs, "train", told)


def test_an_entry_that_is_not_what_its_name_says_is_left_out(pair: tuple[Path, Path, Path]) -> None:
    head, node_, place = pair
    told = at(head, runs.send_inputs, "train")
    at(node_, runs.receive_inputs, "train", told)
    assert walk.Runner(node_)("train") == 0
    at(node_, runs.send_run, "train")
    [entry] = [p for p in (place / "runs").rglob("*") if p.is_file()]
    whole = entry.read_text()
    for wrong in (whole.replace("path: model.txt", "path: ../../outside.txt"), whole[: len(whole) // 2], "- 1\n"):
        entry.write_text(wrong)
        assert at(head, runs.receive_run, "train") is False
    entry.write_text(whole)
    assert at(head, runs.receive_run, "train") is True


def test_restricted_inputs_stay_here_unless_somebody_says_so(tmp_path: Path) -> None:
    shards = "data/shards/small/attic"
    code = f"mkdir -p {shards} && cp source.bin {shards}/manifest.parquet"
    stages: dict[str, Any] = {
        "ingest": {"cmd": code, "deps": ["source.bin"], "outs": [shards]},
        "train": {"cmd": f"wc -c {shards}/manifest.parquet > model.txt", "deps": [shards], "outs": ["model.txt"]},
    }
    head = clones.repository(tmp_path / "head", stages)
    about = json.dumps({"name": "attic", "redistribute": False})
    pq.write_table(pa.table({"key": ["1"]}).replace_schema_metadata({"unforge": about}), head / "source.bin")
    clones.commit(head)
    remote(head, tmp_path / "remote")
    clones.dvc(head, "repro", "-q", "ingest")
    with pytest.raises(ValueError, match=r"attic must not be passed on .*UNFORGE_INCLUDE_RESTRICTED=1"):
        at(head, runs.send_inputs, "train")
    assert not (tmp_path / "remote").exists()
    assert at(head, runs.send_inputs, "train", True)


def test_a_transfer_is_ended_when_asked(pair: tuple[Path, Path, Path]) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(runs.run, [sys.executable, "-c", "import time; time.sleep(600)"], pair[0], stop)
        stop.set()
        with pytest.raises(InterruptedError):
            done.result(60)


def test_patience_ends_and_pauses_grow() -> None:
    said: list[str] = []
    left = [ConnectionError("away"), ConnectionError("away"), None]

    def ask() -> str:
        error = left.pop(0)
        if error is not None:
            raise error
        return "here"

    begin = time.monotonic()
    assert patience.patiently(ask, NEVER, said.append) == "here"
    assert time.monotonic() - begin >= 3
    assert said == ["away; again in 1 s", "away; again in 2 s"]
    left[:] = [ConnectionError("away")]
    with pytest.raises(ConnectionError, match=r"away \(given up after 0 s\)"):
        patience.patiently(ask, NEVER, limit=0.5)
    left[:] = [ConnectionError("away")]
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedError):
        patience.patiently(ask, stop)


def test_seconds_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patience.seconds("UNFORGE_NODE_WAIT", 5) == 5
    monkeypatch.setenv("UNFORGE_NODE_WAIT", "ten")
    with pytest.raises(ValueError, match="UNFORGE_NODE_WAIT='ten' is not a number"):
        patience.seconds("UNFORGE_NODE_WAIT", 5)


def test_a_work_tree_follows_revisions_and_keeps_artefacts(tmp_path: Path) -> None:
    head = clones.repository(tmp_path / "head")
    first = clones.head(head)
    (head / "code.txt").write_text("second\n")
    (head / "later.txt").write_text("only in the second\n")
    second = clones.commit(head)
    place = tmp_path / "node" / "all"
    (place / ".unforge").mkdir(parents=True)
    workspace.check_out(place, str(head), second, silent, NEVER)
    assert (place / "code.txt").read_text() == "second\n"
    (place / "code.txt").write_text("scribbled\n")
    (place / "stray.txt").write_text("untracked\n")
    (place / "model.txt").write_text("an artefact\n")
    (place / ".git" / "index.lock").touch()
    (place / ".dvc" / "tmp").mkdir(exist_ok=True)
    (place / ".dvc" / "tmp" / "rwlock").write_text("{broken")
    workspace.check_out(place, str(head), first, silent, NEVER)
    assert (place / "code.txt").read_text() == "code\n"
    assert not (place / "later.txt").exists()
    assert not (place / "stray.txt").exists()
    assert (place / "model.txt").read_text() == "an artefact\n"
    assert clones.dvc(place, "cache", "dir").strip() == str(tmp_path / "node" / "cache")
    assert "train" in clones.dvc(place, "status", "train")  # no lock is in the way


def test_a_revision_that_nobody_has_is_said_at_once(tmp_path: Path) -> None:
    head = clones.repository(tmp_path / "head")
    place = tmp_path / "node"
    place.mkdir()
    for repository, words in ((str(head), "does not give revision dddddddddddd"), ("ext::sh -c id", "not allowed")):
        with pytest.raises(ValueError, match=words):
            workspace.check_out(place, repository, "d" * 40, silent, NEVER)
    with pytest.raises(ValueError, match="'--upload-pack=id' is not a revision"):
        workspace.check_out(place, str(head), "--upload-pack=id", silent, NEVER)


def test_workspaces_by_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workspace.place() == runs.HOME / ".unforge" / "node" / "all"
    monkeypatch.setenv("UNFORGE_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert workspace.place() == tmp_path / "0-1"


def test_a_workspace_has_one_user_and_the_next_waits(tmp_path: Path) -> None:
    said: list[str] = []
    held = threading.Event()

    def second() -> None:
        with workspace.hold(tmp_path, said.append, NEVER):
            held.set()

    with ThreadPoolExecutor(1) as pool:
        with workspace.hold(tmp_path, silent, NEVER):
            other = pool.submit(second)
            while not said:
                time.sleep(0.05)
            assert "another run is at work" in said[0]
            assert not held.is_set()
        other.result(30)
    assert len(said) == 1
    stop = threading.Event()
    stop.set()
    with walk.alone(tmp_path), pytest.raises(InterruptedError), workspace.hold(tmp_path, silent, stop):
        pass


def test_where_a_node_gets_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = clones.repository(tmp_path / "origin")
    assert node._source(origin) == (clones.head(origin), str(origin))
    head = clones.clone(origin, tmp_path / "head")
    assert node._source(head) == (clones.head(origin), str(origin))
    (head / "code.txt").write_text("not pushed\n")
    revision = clones.commit(head)
    with pytest.raises(ValueError, match=f"origin does not have revision {revision[:12]}: push it"):
        node._source(head)
    monkeypatch.setenv("UNFORGE_REPOSITORY", "https://somebody:secret@example.invalid/x.git")
    assert node._source(head) == (revision, "https://example.invalid/x.git")
    empty = tmp_path / "empty"
    empty.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=empty, check=True)
    with pytest.raises(ValueError, match="has no commit"):
        node._source(empty)


def test_addresses_of_ssh_keep_their_user() -> None:
    for url in ("git@example.invalid:x.git", "ssh://git@example.invalid/x.git", "/srv/x.git"):
        assert node._without_credentials(url) == url
