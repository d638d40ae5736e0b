"""Locks merged stage by stage: by real git, in real DVC repositories, and as a function."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows import locks, walk

ROOT = Path(__file__).resolve().parents[3]
DVC = [sys.executable, "-m", "dvc"]
TABLE_A, TABLE_B = "reports/small/tables/a.md", "reports/small/tables/b.md"


def stage(name: str, deps: list[str], out: str, in_git: bool = False) -> dict[str, Any]:
    """A stage that writes its name into `ran` whenever it really runs."""
    command = f"echo {name} >> ran && mkdir -p $(dirname {out}) && cat {' '.join(deps)} > {out}"
    return {"cmd": command, "deps": deps, "outs": [{out: {"cache": False}} if in_git else out]}


STAGES = {
    "joined": stage("joined", ["work/a", "work/b"], "work/joined"),
    "make-a": stage("make-a", ["a1.txt", "a2.txt"], "work/a"),
    "make-b": stage("make-b", ["b.txt"], "work/b"),
    "table-a": stage("table-a", ["work/a"], TABLE_A, in_git=True),
    "table-b": stage("table-b", ["work/b"], TABLE_B, in_git=True),
}


def git(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=check, capture_output=True, text=True)


def flows_locks(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "flows.locks", *arguments]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def repository(folder: Path) -> Path:
    """Everything run and committed on the branch `main`, the merge driver installed."""
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    subprocess.run([*DVC, "init", "-q"], cwd=folder, check=True)
    (folder / ".gitignore").write_text("/work\n/ran\n/.unforge\n")
    shutil.copy(ROOT / ".gitattributes", folder)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    for name in ("a1.txt", "a2.txt", "b.txt"):
        (folder / name).write_text(f"{name}\n")
    reproduce(folder)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all run")
    flows_locks(folder, "install")
    return folder


def reproduce(folder: Path) -> list[str]:
    """`dvc repro` and canonical locks; the stages that really ran, sorted."""
    (folder / "ran").unlink(missing_ok=True)
    subprocess.run([*DVC, "repro", "-q"], cwd=folder, check=True)
    locks.canonical(folder)
    return sorted((folder / "ran").read_text().split()) if (folder / "ran").exists() else []


def change(folder: Path, branch: str, edits: dict[str, str]) -> None:
    """A branch of `main` with files edited, everything run, committed."""
    git(folder, "checkout", "-q", "-b", branch, "main")
    for name, text in edits.items():
        (folder / name).write_text(text)
    reproduce(folder)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", branch)


def entries(folder: Path) -> list[str]:
    return list(yaml.safe_load((folder / "dvc.lock").read_text())["stages"])


def status(folder: Path) -> str:
    return subprocess.run([*DVC, "status"], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = repository(tmp_path_factory.mktemp("locks") / "one")
    change(folder, "x", {"a1.txt": "x\n"})
    change(folder, "y", {"b.txt": "y\n"})
    change(folder, "z", {"a2.txt": "z\n"})
    git(folder, "checkout", "-q", "x")
    subprocess.run([*DVC, "checkout", "-q"], cwd=folder, check=True)
    return folder


@pytest.fixture
def forked(original: Path, tmp_path: Path) -> Path:
    """A clone whose driver is installed, with `x` (edits a1), `y` (edits b) and `z` (edits a2); `x` checked out."""
    return Path(shutil.copytree(original, tmp_path / "one", symlinks=True))


def test_branches_that_changed_different_stages_merge_and_only_what_joins_them_runs(forked: Path) -> None:
    done = git(forked, "merge", "--no-edit", "y")
    assert "both sides changed joined; left out" in done.stdout + done.stderr
    assert entries(forked) == ["make-a", "make-b", "table-a", "table-b"]
    subprocess.run([*DVC, "checkout", "-q", "--allow-missing"], cwd=forked, check=True)  # b as `y` made it
    assert reproduce(forked) == ["joined"]
    assert "up to date" in status(forked)
    assert (forked / "work/joined").read_text() == "x\na2.txt\ny\n"

    # the same bytes as a serial run of the merged files that shares nothing with it
    alone = forked.with_name("alone")
    subprocess.run(["git", "clone", "-q", str(forked), str(alone)], check=True)
    (alone / "dvc.lock").unlink()
    assert reproduce(alone) == sorted(STAGES)
    assert (alone / "dvc.lock").read_bytes() == (forked / "dvc.lock").read_bytes()


def test_a_stage_that_both_changed_is_left_out_and_its_table_is_stale_until_it_ran(forked: Path) -> None:
    done = git(forked, "merge", "--no-edit", "z", check=False)
    assert done.returncode == 1
    assert "both sides changed joined, make-a, table-a; left out" in done.stdout + done.stderr
    unmerged = git(forked, "diff", "--name-only", "--diff-filter=U").stdout.split()
    assert unmerged == [TABLE_A]  # nobody made the table of the merged code; the lock itself is no conflict
    assert entries(forked) == ["make-b", "table-b"]

    # whichever side's table is taken, even committed: it cannot pass for a fresh one
    for side in ("--ours", "--theirs"):
        git(forked, "checkout", side, TABLE_A)
        assert "table-a" in walk.read_graph(forked).stale
    git(forked, "add", TABLE_A)
    git(forked, "commit", "-q", "-m", "merged, not run")
    assert "table-a" in status(forked)

    assert reproduce(forked) == ["joined", "make-a", "table-a"]
    assert (forked / TABLE_A).read_text() == "x\nz\n"
    assert "up to date" in status(forked)
    assert entries(forked) == sorted(STAGES)


def test_a_table_of_another_side_than_its_lock_is_stale(forked: Path) -> None:
    git(forked, "merge", "--no-edit", "y")
    git(forked, "checkout", "main", "--", TABLE_B)
    assert "table-b" in walk.read_graph(forked).stale


def test_a_stage_that_one_side_removed_stays_removed(forked: Path) -> None:
    kept = {name: value for name, value in STAGES.items() if name not in ("joined", "table-b")}
    git(forked, "checkout", "-q", "-b", "without", "main")
    (forked / "dvc.yaml").write_text(yaml.safe_dump({"stages": kept}))
    lock = yaml.safe_load((forked / "dvc.lock").read_text())
    lock["stages"] = {name: value for name, value in lock["stages"].items() if name in kept}
    (forked / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    git(forked, "commit", "-q", "-a", "-m", "two stages fewer")
    git(forked, "merge", "--no-edit", "x")
    assert entries(forked) == sorted({*kept} - {"joined"})
    assert "x\n" in (forked / TABLE_A).read_text()


def test_without_the_driver_git_reports_a_conflict(forked: Path) -> None:
    git(forked, "config", "--remove-section", "merge.dvclock")
    assert git(forked, "merge", "--no-edit", "z", check=False).returncode == 1
    assert "dvc.lock" in git(forked, "diff", "--name-only", "--diff-filter=U").stdout.split()


def test_both_sides_may_add_the_file_and_a_broken_lock_stays_a_conflict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, ours, theirs = (tmp_path / name for name in ("base", "ours", "theirs"))
    base.write_text("")
    ours.write_text("schema: '2.0'\nstages:\n  b:\n    cmd: b\n")
    theirs.write_text("schema: '2.0'\nstages:\n  a:\n    cmd: a\n")
    assert locks.main(["merge", str(base), str(ours), str(theirs)]) == 0
    assert ours.read_text() == "schema: '2.0'\nstages:\n  a:\n    cmd: a\n  b:\n    cmd: b\n"
    theirs.write_text("<<<<<<< ours\nschema: '2.0'\n=======\n")
    before = ours.read_bytes()
    assert locks.main(["merge", str(base), str(ours), str(theirs)]) == 1
    assert "conflict marks" in capsys.readouterr().err
    assert ours.read_bytes() == before
    theirs.write_text("schema: '3.0'\nstages: {}\n")
    assert locks.main(["merge", str(base), str(ours), str(theirs)]) == 1
    assert ours.read_bytes() == before


def test_merging_keeps_the_bytes_of_a_committed_lock(tmp_path: Path) -> None:
    text = git(ROOT, "show", "HEAD:./dvc.lock").stdout
    for name in ("base", "ours", "theirs"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert locks.merge(tmp_path / "base", tmp_path / "ours", tmp_path / "theirs") == []
    assert (tmp_path / "ours").read_text(encoding="utf-8") == text


def test_installing_outside_of_git_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match=str(tmp_path)):
        locks.install(tmp_path)


LOCKS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2), max_size=6)


@given(LOCKS, LOCKS)
def test_what_one_side_did_is_the_result(base: dict[str, int], side: dict[str, int]) -> None:
    assert locks.merged(base, side, base) == (dict(sorted(side.items())), [])
    assert locks.merged(base, base, side) == (dict(sorted(side.items())), [])
    assert locks.merged(base, side, side) == (dict(sorted(side.items())), [])


@given(LOCKS, LOCKS, LOCKS)
def test_sides_may_be_swapped_and_nothing_is_made_up(
    base: dict[str, int], ours: dict[str, int], theirs: dict[str, int]
) -> None:
    stages, dropped = locks.merged(base, ours, theirs)
    assert (stages, dropped) == locks.merged(base, theirs, ours)
    assert list(stages) == sorted(stages)
    for name in {*base, *ours, *theirs}:
        versions = (base.get(name), ours.get(name), theirs.get(name))
        assert (name in dropped) == (len(set(versions)) == 3)
        if name in stages:
            assert stages[name] in versions[1:]
            assert not (stages[name] == versions[0] and versions[1] != versions[2])
