"""The work tree in which a node runs stages: its own clone, one user at a time, at any revision."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows import patience, runs, walk

FOR_GOOD = re.compile(
    r"not our ref|couldn't find remote ref|Authentication failed|could not read Username|Permission denied \("
    r"|Repository not found|transport '.*' not allowed"
)
"""What git says when another try would not help."""


def place() -> Path:
    """Where this process works: below UNFORGE_WORKSPACE (default: `.unforge/node` of the clone the worker runs in).

    One folder for each set of devices (CUDA_VISIBLE_DEVICES), so workers of one machine do not wait for each other.
    """
    base = Path(os.environ.get("UNFORGE_WORKSPACE") or runs.HOME / ".unforge" / "node").resolve()
    return base / (re.sub(r"[^0-9A-Za-z]+", "-", os.environ.get("CUDA_VISIBLE_DEVICES", "")).strip("-") or "all")


@contextmanager
def hold(workspace: Path, say: Callable[[str], None], stop: threading.Event) -> Iterator[None]:
    """Have a workspace alone, as soon as nobody else does. What a killed run left running there is ended first."""
    with ExitStack() as stack:
        waits = ""
        while True:
            try:
                stack.enter_context(walk.alone(workspace))
                break
            except ValueError as error:
                if waits != (waits := str(error)):
                    say(f"waiting: {error}")
            if stop.wait(1.0):
                raise InterruptedError
        yield


def check_out(
    workspace: Path, repository: str, revision: str, say: Callable[[str], None], stop: threading.Event
) -> None:
    """A clean work tree of a revision. Artefacts and caches of earlier stages stay where git ignores them.

    Raises ValueError when `repository` does not have the revision, ConnectionError when it stays away.
    """
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", revision):
        raise ValueError(f"{revision!r} is not a revision: 40 or 64 hexadecimal digits")
    environment = {"GIT_SSH_COMMAND": "ssh -oBatchMode=yes", **os.environ, "GIT_TERMINAL_PROMPT": "0"}
    environment["GIT_ALLOW_PROTOCOL"] = "file:git:http:https:ssh"

    def git(*arguments: str) -> tuple[int, str]:
        status, _, words = runs.run(["git", *arguments], workspace, stop, environment)
        return status, words.strip()

    def must(*arguments: str) -> None:
        status, words = git(*arguments)
        if status != 0:
            raise RuntimeError(f"git {arguments[0]} in {workspace}: {words}")

    def fetch() -> None:
        if git("cat-file", "-e", f"{revision}^{{commit}}")[0] == 0:
            return
        status, words = git("fetch", "-q", "--no-tags", "--", repository, revision)
        words = words or f"exit status {status}"
        if status != 0 and (Path(repository).is_absolute() or FOR_GOOD.search(words)):
            raise ValueError(f"{repository} does not give revision {revision[:12]}: {words}")
        if status != 0:
            raise ConnectionError(f"git fetch failed: {words.splitlines()[-1]}")

    if not (workspace / ".git").is_dir():
        must("init", "-q")
    for left in (".git/index.lock", ".git/shallow.lock", ".dvc/tmp/lock", ".dvc/tmp/rwlock"):
        (workspace / left).unlink(missing_ok=True)  # nobody else is here, so a killed process left it
    patience.patiently(fetch, stop, say)
    must("checkout", "-q", "--force", "--detach", revision)
    must("clean", "-ffdq", "-e", "/.unforge", "-e", "/.dvc")
    _share_cache(workspace, stop)


def _share_cache(workspace: Path, stop: threading.Event) -> None:
    """One DVC cache, beside them, for all workspaces of this machine."""
    local, cache = workspace / ".dvc" / "config.local", str(workspace.parent / "cache")
    if local.is_file() and cache in local.read_text(encoding="utf-8"):
        return
    command = [sys.executable, "-m", "dvc", "cache", "dir", "--local", cache]
    status, _, words = runs.run(command, workspace, stop)
    if status != 0:
        raise ValueError(f"{workspace} is not a DVC repository: {words.strip()}")
