"""The `dvc.lock` files: one order of their stages, and merging them stage by stage.

    python -m flows.locks                              sort them
    python -m flows.locks install                      let git merge them, in this clone
    python -m flows.locks merge BASE OURS THEIRS       what git then calls; the result replaces OURS

A stage that one side changed is taken from there. One that both changed, each in its way, is left out: nobody
ran what the merged files say, so DVC shall run it, or restore it from its run-cache. A stage whose inputs come
from the other side is stale by their hashes, as always.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

DRIVER = "dvclock"
"""Name of the merge driver in .gitattributes."""


def canonical(root: Path) -> None:
    """Sort the stages of every dvc.lock. Only the order changes, which depends on what finished first."""
    from dvc.utils.serialize import load_yaml

    for path in [root / "dvc.lock", *sorted(root.glob("papers/*/dvc.lock"))]:
        if not path.is_file():
            continue
        names = re.findall(r"(?m)^  (\S+):$", path.read_text(encoding="utf-8"))
        if names != sorted(names):
            _write(path, load_yaml(str(path)))


def _write(path: Path, lock: Mapping[str, Any]) -> None:
    """Write a lock in canonical form, whole or not at all."""
    from dvc.utils.serialize import dump_yaml

    temporary = path.with_name(".dvc.lock.sorted")
    try:
        dump_yaml(str(temporary), {**lock, "stages": dict(sorted(lock["stages"].items()))})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def free(root: Path) -> None:
    """Take processes that run no more out of DVC's table of readers and writers; drop a table that was cut short.

    DVC takes a zombie for a process that runs, and stops at a table that a kill or a full disk left empty.
    Raises ValueError when another process keeps the table busy.
    """
    from dvc.lock import LockError, make_lock
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    folder = root / ".dvc" / "tmp"
    path = folder / RWLOCK_FILE
    if not path.is_file():
        return
    held: Any = None
    kept: dict[str, Any] = {}
    try:
        with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder)):
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                held = json.loads(path.read_text(encoding="utf-8"))
                readers = {file: [one for one in all_ if _runs(one)] for file, all_ in held.get("read", {}).items()}
                writers = {file: one for file, one in held.get("write", {}).items() if _runs(one)}
                kept = {"read": {file: some for file, some in readers.items() if some}, "write": writers}
            if kept != held:
                temporary = path.with_name("rwlock.free")
                temporary.write_text(json.dumps(kept), encoding="utf-8")
                os.replace(temporary, path)
    except LockError as error:
        raise ValueError(f"another run is at work in {root}: wait for it, or end it ({error})") from None


def _runs(holder: Mapping[str, Any]) -> bool:
    try:
        return bool(psutil.Process(int(holder["pid"])).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def merged(
    base: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Stages of a three-way merge, by name, and the names of those left out because both sides changed them."""
    stages, dropped = {}, []
    for name in sorted({*base, *ours, *theirs}):
        was, mine, yours = base.get(name), ours.get(name), theirs.get(name)
        if mine != yours and was not in (mine, yours):
            dropped.append(name)
            continue
        stage = yours if mine == was else mine
        if stage is not None:
            stages[name] = stage
    return stages, dropped


def merge(base: Path, ours: Path, theirs: Path) -> list[str]:
    """Merge lock files into `ours`, in canonical form; the stages left out. ValueError for what is not a lock."""
    sides = [_read(path) for path in (base, ours, theirs)]
    rest = [{key: value for key, value in side.items() if key != "stages"} for side in sides]
    if rest[1] != rest[2]:
        raise ValueError(f"the locks differ outside of their stages: {rest[1]} and {rest[2]}; merge them by hand")
    stages, dropped = merged(*(side.get("stages") or {} for side in sides))
    _write(ours, {**rest[1], "stages": stages})
    return dropped


def _read(path: Path) -> dict[str, Any]:
    from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml

    try:
        lock = load_yaml(str(path))
    except YAMLFileCorruptedError:
        raise ValueError(f"{path} is not YAML: were conflict marks committed?") from None
    if lock is not None and not isinstance(lock, dict):
        raise ValueError(f"{path} is not a dvc.lock")
    return lock or {}  # git gives an empty base when both sides added the file


def install(root: Path) -> None:
    """Set up git's merge driver in the clone at `root`. Raises ValueError outside of a git repository."""
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "merge"]
    driver = " ".join(shlex.quote(part).replace("%", "%%") for part in command) + " %O %A %B --name %P"
    settings = {"name": "dvc.lock, stage by stage", "driver": driver}
    for key, value in settings.items():
        done = subprocess.run(
            ["git", "config", f"merge.{DRIVER}.{key}", value], cwd=root, capture_output=True, text=True
        )
        if done.returncode:
            raise ValueError(f"{root}: {done.stderr.strip() or 'git config failed'}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.locks", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("sort", help="sort the stages of every dvc.lock (the default)")
    commands.add_parser("install", help="let git merge dvc.lock files stage by stage, in this clone")
    driver = commands.add_parser("merge", help="three-way merge; the result replaces OURS")
    for name in ("base", "ours", "theirs"):
        driver.add_argument(name, type=Path)
    driver.add_argument("--name", default="dvc.lock", help="path of the lock in the repository, for messages")
    options = parser.parse_args(arguments)
    try:
        if options.command == "merge":
            dropped = merge(options.base, options.ours, options.theirs)
            if dropped:
                what = f"{options.name}: both sides changed {', '.join(dropped)}"
                print(f"{what}; left out of the lock, `unforge reproduce` builds or restores them", file=sys.stderr)
        elif options.command == "install":
            install(Path.cwd())
        else:
            canonical(Path.cwd())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
