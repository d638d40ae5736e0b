"""Resumable state of a run: outside every DVC output, replaced atomically, gone when the run is done."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unforge import paths

FILE = "state.pt"


def code() -> dict[str, str]:
    """Hash of every module of unforge that is loaded: a run does not continue under other code."""
    files = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "unforge"}
    return {name: paths.sha256(Path(file)) for name, file in sorted(files.items()) if file}


def folder(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> Path:
    """Where the stage's state lies: the name changes with the configuration, the inputs and the code."""
    return paths.resume(stage, paths.digest({"config": dict(config), "inputs": dict(inputs), "code": code()})[:32])


def save(where: Path, state: Mapping[str, Any]) -> None:
    """Write the state; killed at any moment, the file is the old one or the new one."""
    where.mkdir(parents=True, exist_ok=True)
    temporary = where / f".{FILE}.tmp"
    with open(temporary, "wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, where / FILE)


def load(where: Path) -> dict[str, Any] | None:
    """The state, on the CPU; None when there is none."""
    path = where / FILE
    if not path.is_file():
        return None
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def remove(where: Path | None) -> None:
    """The run is finished: drop its state (None: it had none), and the stage's folder when nothing else is in it."""
    if where is None:
        return
    shutil.rmtree(where, ignore_errors=True)
    if where.parent.is_dir() and not any(where.parent.iterdir()):
        where.parent.rmdir()
