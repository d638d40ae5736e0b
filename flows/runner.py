"""Run stages as process groups that can be ended: one `dvc --wait-for-lock repro -s STAGE` each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from flows import preload

DVC = Path(__file__).with_name("whole.py")
LOGS = Path(".unforge/logs")
RUNNING = Path(".unforge/running")
GRACE = 5.0
"""Seconds between asking a stage to end and killing it."""
TOO_LONG, ENDED = 124, 130
"""Exit status of a stage that took longer than its timeout, and of one that was ended with its run."""


def log_path(root: Path, stage: str) -> Path:
    return root / LOGS / (stage.replace("/", "~").replace(":", "~") + ".log")


class Runner:
    """Runs stages, each in its own process group, and can end all of them.

    Processes are forked from one that has the libraries loaded (`preload`) where that is possible, and else new.
    """

    def __init__(
        self, root: Path, timeout: float | None = None, line: Callable[[str, str], None] | None = None
    ) -> None:
        """`timeout`: seconds a stage may take; `line` is called with a stage and what its log has grown by.

        That is one or more whole lines, about every second.
        """
        self.root, self.timeout, self.line = root, timeout, line
        self.processes: set[subprocess.Popen[bytes] | preload.Forked] = set()
        self.starting, self.ended = threading.Lock(), False
        self.forks = preload.possible()
        self.server: preload.Server | None = None

    def __call__(self, stage: str) -> int:
        """Run one stage; its exit status, `TOO_LONG` when it was ended after `timeout` seconds."""
        log = log_path(self.root, stage)
        record = self.root / RUNNING / f"{log.stem}.json"
        for folder in (log.parent, record.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with self.starting, open(log, "wb") as file:
            process = None if self.ended else self._begin(stage, file)
            if process is None:
                return ENDED
            self.processes.add(process)
        try:
            record.write_text(json.dumps({"group": process.pid, "started": time.time()}), encoding="utf-8")
            return self._wait(stage, process, log)
        finally:
            end(process.pid)  # whatever the stage left running, also when DVC itself was killed
            process.wait()
            self.processes.discard(process)
            record.unlink(missing_ok=True)

    def _begin(self, stage: str, log: IO[bytes]) -> subprocess.Popen[bytes] | preload.Forked | None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path}
        arguments = ["--wait-for-lock", "repro", "-s", stage]
        if self.forks:
            try:
                if self.server is None or self.server.environment != environment:
                    self.close()
                    self.server = preload.Server(self.root, environment)
                return self.server.start(DVC, arguments, log.fileno())
            except OSError as error:
                if self.ended:
                    return None
                self.forks = False
                log.write(f"{error}: this stage and those after it load the libraries themselves\n".encode())
                log.flush()
        return subprocess.Popen(
            [sys.executable, "-P", str(DVC), *arguments],
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _wait(self, stage: str, process: subprocess.Popen[bytes] | preload.Forked, log: Path) -> int:
        deadline = time.monotonic() + (float("inf") if self.timeout is None else self.timeout)
        status: int | None = None
        unfinished = ""
        with open(log, encoding="utf-8", errors="replace") as text:
            while status is None:
                try:
                    status = process.wait(max(0.0, min(1.0, deadline - time.monotonic())))
                except subprocess.TimeoutExpired:
                    if time.monotonic() >= deadline:
                        status = TOO_LONG
                    elif self.ended:
                        status = ENDED
                if self.line is not None:
                    whole, _, unfinished = (unfinished + text.read()).rpartition("\n")
                    if status is not None:
                        whole = f"{whole}\n{unfinished}".strip("\n")
                    if whole:
                        self.line(stage, whole)
        return status

    def end_all(self) -> None:
        """End every stage that runs, and let no other begin."""
        self.ended = True
        self.close()  # it may be loading libraries for a stage that begins
        with self.starting:
            running = [process.pid for process in self.processes]
        if running:
            with ThreadPoolExecutor(len(running)) as pool:
                list(pool.map(end, running))

    def close(self) -> None:
        """End the server that stages are forked from; stages that run go on."""
        if (server := self.server) is not None:
            server.close()


def end(group: int, since: float = 0.0) -> bool:
    """End the processes of a group that began after `since` (seconds since 1970); whether there were any.

    They are asked to terminate, and killed after `GRACE` seconds.
    """
    found = members = _members(group, since)
    for process in found:
        _send(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while members:
        if time.monotonic() > deadline:
            for process in members:
                _send(process, signal.SIGKILL)
        time.sleep(0.02)
        members = _members(group, since)
    return bool(found)


def _send(process: psutil.Process, signal_: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal_)


def _members(group: int, since: float) -> list[psutil.Process]:
    """Processes of a group that still run; a zombie does not."""
    found = []
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return []
    for process in psutil.process_iter():
        try:
            if (
                os.getpgid(process.pid) == group
                and process.create_time() >= since
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found
