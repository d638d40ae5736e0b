"""Small repositories whose code is committed, for the tests of nodes: a head, and what others clone from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

DVC = [sys.executable, "-m", "dvc"]
GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@example.invalid"]

STAGES: dict[str, Any] = {
    "prepare": {
        "cmd": "mkdir -p data && cp seed.txt data/a && cat seed.txt seed.txt > data/b && echo words > words.md",
        "deps": ["seed.txt"],
        "outs": ["data", "spare.txt", {"words.md": {"cache": False}}],
    },
    "train": {
        "cmd": "cat data/a data/b words.md code.txt > model.txt",
        "deps": ["code.txt", "data", "words.md"],
        "outs": ["model.txt"],
        "meta": {"pool": "gpu"},
    },
    "table": {
        "cmd": "cat model.txt > table.md",
        "deps": ["model.txt"],
        "outs": [{"table.md": {"cache": False}}],
    },
}
STAGES["prepare"]["cmd"] += " && echo spare > spare.txt"


def repository(folder: Path, stages: dict[str, Any] = STAGES, **files: str) -> Path:
    """A committed DVC repository with the files `seed.txt`, `code.txt` and others by name (`_` for a dot)."""
    folder.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=folder, check=True)
    subprocess.run([*DVC, "init", "-q"], cwd=folder, check=True)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    texts = {"seed.txt": "1\n", "code.txt": "code\n", ".gitignore": "/data\n/spare.txt\n/model*.txt\n/.unforge/\n"}
    texts |= {name.replace("_", "."): text for name, text in files.items()}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    commit(folder)
    return folder


def commit(folder: Path) -> str:
    """Commit everything; the revision."""
    subprocess.run([*GIT, "add", "-A"], cwd=folder, check=True)
    subprocess.run([*GIT, "commit", "-q", "--allow-empty", "-m", "a change"], cwd=folder, check=True)
    return head(folder)


def head(folder: Path) -> str:
    run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def clone(source: Path, folder: Path) -> Path:
    subprocess.run(["git", "clone", "-q", str(source), str(folder)], check=True)
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    return subprocess.run([*DVC, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout
