"""`docs/team.md`, executed as written: every shell block, in order, in one shell, in a fresh clone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows import smoke
from tests.services.servers import QUIET, ROOT, free_ports

pytestmark = [pytest.mark.services, pytest.mark.slow]
PAGE = ROOT / "docs" / "team.md"


def test_the_walk_through_runs_as_written(tmp_path: Path) -> None:
    """Needs a work tree in which `make repro` has run: the clone takes its outputs from the cache."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 10
    clone = tmp_path / "head"
    smoke.clone(ROOT, clone, "small")
    own_cache(clone)
    team = tmp_path / "team"
    team.mkdir()
    for command in (
        ["git", "checkout", "-q", "HEAD", "--", "."],
        ["git", "config", "user.email", "team@localhost"],
        ["git", "config", "user.name", "team"],
    ):
        subprocess.run(command, cwd=clone, check=True)
    (clone / ".venv").symlink_to(Path(sys.executable).parents[1])
    (clone / ".git" / "info" / "exclude").write_text(".venv\n", encoding="utf-8")  # a link is no folder to .gitignore
    s3, prefect, *others = free_ports(7)
    names = ("master", "volume", "filer", "webdav", "admin")
    environment = {
        **os.environ,
        **QUIET,
        "TEAM": str(team),
        "S3_PORT": str(s3),
        "PREFECT_PORT": str(prefect),
        "WEED_PORTS": " ".join(f"-{name}.port={port}" for name, port in zip(names, others, strict=True)),
        "PYTHONPATH": str(clone / "src"),
    }
    subprocess.run(
        [sys.executable, "-m", "dvc", "checkout", "-q"], cwd=clone, env=environment, check=True, stdout=subprocess.PIPE
    )
    script = "set -eo pipefail\n" + "".join(f"echo '## block {i}'\n{block}" for i, block in enumerate(blocks))
    log = tmp_path / "log"
    with open(log, "wb") as file:
        shell = subprocess.Popen(
            ["bash", "-c", script], cwd=clone, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            status = shell.wait(2400)
        finally:
            for process in _started_here(team):
                os.kill(process, signal.SIGKILL)
    assert status == 0, log.read_text(encoding="utf-8", errors="replace")[-6000:]


def own_cache(clone: Path) -> None:
    """A cache of the clone's own, without the runs that the nodes are to make: an earlier walk-through left them."""
    cache = clone / ".dvc" / "cache"
    shutil.copytree(ROOT / ".dvc" / "cache", cache)
    for runs in list((cache / "runs").glob("*/*")):
        if any("stages/evaluate.py constant" in entry.read_text(encoding="utf-8") for entry in runs.iterdir()):
            shutil.rmtree(runs)
    subprocess.run([sys.executable, "-m", "dvc", "cache", "dir", "--local", "--unset"], cwd=clone, check=True)


def _started_here(team: Path) -> list[int]:
    """Processes that have this walk-through's TEAM in their environment: a failed one leaves servers behind."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"TEAM={team}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found
