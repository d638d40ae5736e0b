"""The walker against DVC itself, on a small real repository."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml

from flows import locks, walk

DVC = [sys.executable, "-m", "dvc"]


def stage(out: str, deps: list[str], command: str = "") -> dict[str, object]:
    return {"cmd": command or f"cat {' '.join(deps)} > {out}", "deps": deps, "outs": [out]}


STAGES = {
    "z_source": stage("z.txt", ["seed.txt"]),
    "left": stage("left.txt", ["z.txt", "left_code.txt"]),
    "right": stage("right.txt", ["z.txt"]),
    "a_both": stage("both.txt", ["left.txt", "right.txt"]),
    "alone": stage("alone.txt", ["left_code.txt"]),
}


def repository(folder: Path, stages: dict[str, object]) -> Path:
    folder.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run([*DVC, "init", "-q"], cwd=folder, check=True)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    (folder / "seed.txt").write_text("1\n")
    (folder / "left_code.txt").write_text("code\n")
    (folder / ".gitignore").write_text("/*.txt\n")
    return folder


def test_parallel_and_serial_locks_are_the_same_bytes(tmp_path: Path) -> None:
    one = repository(tmp_path / "one", STAGES)
    two = repository(tmp_path / "two", STAGES)
    result = walk.walk(one, jobs=3, report=lambda _: None)
    assert set(result.ran) == set(STAGES)
    assert not result.failed
    subprocess.run([*DVC, "repro", "-q"], cwd=two, check=True)
    locks.canonical(two)
    assert (one / "dvc.lock").read_bytes() == (two / "dvc.lock").read_bytes()
    assert list(yaml.safe_load((one / "dvc.lock").read_text())["stages"]) == sorted(STAGES)
    again = walk.walk(one, report=lambda _: None)
    assert (again.ran, again.fresh) == ({}, len(STAGES))
    status = subprocess.run([*DVC, "status"], cwd=one, check=True, capture_output=True, text=True).stdout
    assert "up to date" in status

    # an edit runs what depends on it and nothing else; a target limits that to what the target needs
    (one / "left_code.txt").write_text("other\n")
    assert set(walk.walk(one, ["left"], report=lambda _: None).ran) == {"left"}
    assert set(walk.walk(one, report=lambda _: None).ran) == {"a_both", "alone"}
    assert (one / "both.txt").read_text() == "1\nother\n1\n"


def test_each_file_is_read_once_and_read_again_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.dependency import param
    from dvc.output import Output

    stages = {name: stage(f"{name}.txt", ["seed.txt"]) | {"params": [f"{name}.size"]} for name in ("a", "b", "c")}
    root = repository(tmp_path / "one", stages)
    sizes = {name: {"size": 1} for name in stages}
    (root / "params.yaml").write_text(yaml.safe_dump(sizes))
    assert set(walk.walk(root, report=lambda _: None).ran) == set(stages)
    read: list[str] = []
    load, digest = param.load_path, Output.get_hash
    monkeypatch.setattr(param, "load_path", lambda path, fs: read.append(Path(path).name) or load(path, fs))
    monkeypatch.setattr(Output, "get_hash", lambda out: read.append(Path(out.fs_path).name) or digest(out))
    assert walk.read_graph(root).stale == frozenset()
    assert sorted(read) == ["a.txt", "b.txt", "c.txt", "params.yaml", "seed.txt"]
    (root / "params.yaml").write_text(yaml.safe_dump(sizes | {"b": {"size": 2}}))
    assert walk.read_graph(root).stale == {"b"}
    (root / "seed.txt").write_text("22\n")
    assert walk.read_graph(root).stale == set(stages)


def test_a_failure_stops_its_dependants_only(tmp_path: Path) -> None:
    stages = {**STAGES, "left": stage("left.txt", ["z.txt"], "echo no such thing; exit 3")}
    folder = repository(tmp_path / "one", stages)
    result = walk.walk(folder, report=lambda _: None)
    assert set(result.ran) == {"z_source", "right", "alone"}
    assert set(result.failed) == {"left"}
    assert "no such thing" in result.failed["left"]
    assert result.skipped == {"a_both": "left"}
    command = [sys.executable, "-m", "flows.walk"]
    root = Path(__file__).resolve().parents[3]
    run = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "not started a_both: it needs left" in run.stderr


def test_stages_never_start_before_what_they_need(tmp_path: Path) -> None:
    folder = repository(tmp_path / "one", STAGES)
    started: list[str] = []

    def pretend(name: str) -> int:
        started.append(name)
        return 0

    walk.walk(folder, jobs=4, run=pretend, report=lambda _: None)
    assert sorted(started) == sorted(STAGES)
    for name, needs in {"left": ["z_source"], "right": ["z_source"], "a_both": ["left", "right"]}.items():
        assert all(started.index(need) < started.index(name) for need in needs)


def test_the_longest_chain_goes_first() -> None:
    upstream = {"a": frozenset[str](), "b": frozenset(["a"]), "c": frozenset(["b"]), "d": frozenset[str]()}
    assert walk.Graph(upstream, frozenset()).height() == {"a": 3, "b": 2, "c": 1, "d": 1}


def test_an_unknown_target_names_the_nearest(tmp_path: Path) -> None:
    folder = repository(tmp_path / "one", STAGES)
    with pytest.raises(ValueError, match="near are right"):
        walk.walk(folder, ["rihgt"], report=lambda _: None)


def test_a_stage_is_ended_with_its_children(tmp_path: Path) -> None:
    command = "sh -c 'echo $$ > pid; mv pid started; sleep 120'; cat seed.txt > o.txt"
    folder = repository(tmp_path / "one", {"slow": stage("o.txt", ["seed.txt"], command)})
    runner = walk.Runner(folder)
    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(runner, "slow")
        while not (folder / "started").exists():
            assert not status.done(), walk.log_path(folder, "slow").read_text()
            time.sleep(0.1)
        runner.end_all()
        assert status.result() != 0
    child = int((folder / "started").read_text())  # init may take its time to bury it
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert walk.Runner(folder, timeout=0.01)("slow") == 124


def test_a_second_walk_beside_a_running_one_is_refused(tmp_path: Path) -> None:
    folder = repository(tmp_path / "one", STAGES)
    holder = (
        "import sys, time\nfrom dvc.repo import Repo\nfrom dvc.rwlock import rwlock\n"
        "with Repo('.') as repo, rwlock(repo.tmp_dir, repo.fs, 'test', [], [repo.root_dir + '/left.txt'], False):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another run is at work"):
            walk.walk(folder, report=lambda _: None)
        process.communicate("")
    assert set(walk.walk(folder, report=lambda _: None).ran) == set(STAGES)
