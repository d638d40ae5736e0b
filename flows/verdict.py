"""DVC's verdict that nothing is stale, remembered for as long as no file that it rests on is another.

DVC reads and hashes all that its stages name, and parses its own files, each time it is asked. Here only times, sizes
and inodes are looked at, as DVC itself does before it trusts a hash. A verdict is kept for the whole graph, and only
when nothing in it is stale: whatever else is asked goes to DVC.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE = Path(".dvc/tmp/unforge.verdict.json")
SLACK = 20_000_000
"""Nanoseconds by which a file system's clock may lag behind."""
SETTINGS = ("params.yaml", ".dvcignore", ".dvc/config", ".dvc/config.local")


def keep(root: Path, graph: Mapping[str, Any], named: Iterable[str], since: int) -> None:
    """Remember `graph` (JSON-able), of which nothing is stale. `named`: paths of all files and folders that its stages
    read and write, absolute or from `root`; `since`: when DVC began to look (ns).

    Nothing is remembered when something is gone or was touched after that, for DVC may have seen it as it was before,
    nor where no record can be written.
    """
    paths = sorted({os.path.relpath(os.path.join(root, path), root) for path in named})
    with suppress(OSError):
        digest = _digest(root, paths)
        if any(_touched(os.path.join(root, path), since) for path in (*paths, *_definitions(root, set(paths)))):
            return
        temporary = (root / FILE).with_suffix(".tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"graph": graph, "paths": paths, "digest": digest}), encoding="utf-8")
        os.replace(temporary, root / FILE)


def recall(root: Path) -> dict[str, Any] | None:
    """What `keep` was given, or None: nothing is remembered, or some file is another than it was."""
    try:
        saved = json.loads((root / FILE).read_text(encoding="utf-8"))
        same = saved["digest"] == _digest(root, saved["paths"])
        return dict(saved["graph"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):  # none yet, cut short, or of another version
        return None


def _touched(path: str, since: int) -> bool:
    """Whether a file, a folder or anything in it is gone or was changed at `since` (ns) or up to `SLACK` before."""
    return any(not os.path.exists(name) or os.stat(name).st_ctime_ns >= since - SLACK for name, _ in _below(path))


def _digest(root: Path, paths: Iterable[str]) -> str:
    """Of time, size and inode of everything at `paths`, of DVC's settings and of all files that define stages."""
    found = hashlib.sha256(version("dvc").encode())
    paths = set(paths)
    for path in sorted({*paths, *SETTINGS, *_definitions(root, paths)}):
        for name, about in _below(os.path.join(root, path)):
            found.update(f"{name}\0{about}\n".encode())
    return found.hexdigest()


def _below(path: str) -> Iterator[tuple[str, str]]:
    """Path and state of a file, or of a folder and everything in it."""
    try:
        state = os.stat(path)
    except FileNotFoundError:
        yield path, "missing"
        return
    if not os.path.isdir(path):
        yield path, f"{state.st_mtime_ns} {state.st_size} {state.st_ino}"
        return
    yield path, "folder"
    for name in sorted(os.listdir(path)):
        yield from _below(os.path.join(path, name))


def _definitions(root: Path, outputs: set[str]) -> list[str]:
    """dvc.yaml, dvc.lock and .dvc files, new ones too; folders that stages name hold none."""
    found = []
    for folder, folders, files in os.walk(root):
        here = os.path.relpath(folder, root)
        folders[:] = [f for f in folders if not f.startswith(".") and os.path.normpath(f"{here}/{f}") not in outputs]
        found += [
            os.path.normpath(f"{here}/{name}")
            for name in files
            if name in ("dvc.yaml", "dvc.lock") or name.endswith(".dvc")
        ]
    return found
