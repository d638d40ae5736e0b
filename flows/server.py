"""A Prefect server on loopback: for one run that finds none configured, or to stay.

    python -m flows.server [--host 127.0.0.1] [--port 4200]

Its database is in `.unforge/prefect` (or PREFECT_HOME). The server of a run ends when its standard input closes,
so it ends with that run, whatever ends that.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import ipaddress
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

CODE = Path(__file__).resolve().parents[1]
HOME = Path(".unforge/prefect")
QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
READY = 120.0
"""Seconds for a server to answer: a cold start under load took 25."""
STOP = 10.0
"""Seconds for a server to write what it holds."""
SPACE = 16 * 2**20
"""Bytes of disk without which a server does not come up: its database, and what SQLite writes beside it."""
TRIES = 3
"""Servers that may end by themselves before none is started again."""
BUSY = 75
"""Exit status of a server that found another on the same database."""


@contextmanager
def api(root: Path) -> Iterator[str]:
    """The Prefect API to use, as PREFECT_API_URL of this process: the configured one, or a server of this block's own.

    Raises ValueError when Prefect is missing or the configured API does not answer, OSError when no server comes up.
    """
    configured = configured_api()
    if configured is not None:
        if not _answers(configured, 10):
            raise ValueError(
                f"no Prefect server answers at {configured} (PREFECT_API_URL): start it (python -m flows.server), "
                "or unset the variable for a server of this run only"
            )
        yield configured
        return
    home = (root / HOME).resolve()
    with _own(home) as url, _environment({"PREFECT_API_URL": url, "PREFECT_HOME": str(home)}):
        try:
            yield url
        finally:
            _drain()


def configured_api() -> str | None:
    """The API that PREFECT_API_URL or the active Prefect profile names. ValueError when Prefect is missing."""
    require()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def require() -> None:
    """ValueError without Prefect."""
    from importlib.util import find_spec

    if find_spec("prefect") is None:
        raise ValueError("this needs Prefect: pip install unforge[flows]")


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables of this process and Prefect's settings with them, as they were before afterwards."""
    from prefect.context import refresh_global_settings_context

    secret = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    if secret and "PREFECT_API_AUTH_STRING" not in os.environ:
        values = {**values, "PREFECT_API_AUTH_STRING": secret}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    refresh_global_settings_context()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        refresh_global_settings_context()


def _drain() -> None:
    """Send what Prefect's background threads hold: log lines, and events, which carry the states of tasks."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    with suppress(TimeoutError):
        APILogWorker.drain_all(timeout=STOP)
    with suppress(TimeoutError):
        EventsWorker.drain_all(timeout=STOP)


@contextmanager
def _own(home: Path) -> Iterator[str]:
    """The API of a server on the database in `home`: one that stays there and runs already, else a new one."""
    home.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + READY
    ended = 0
    while True:
        port = free_port()
        url = f"http://127.0.0.1:{port}/api"
        process = _start(home, port)
        try:
            while process.poll() is None and not _answers(url) and time.monotonic() < deadline:
                time.sleep(0.1)
            if process.poll() is None and time.monotonic() < deadline:
                yield url
                return
            if process.poll() == BUSY and (staying := (home / "server.lock").read_text(encoding="utf-8").strip()):
                yield staying
                return
        finally:
            _stop(process)
        ended += process.returncode != BUSY
        if shutil.disk_usage(home).free < SPACE:  # its log had no space either
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(home))
        if ended == TRIES or time.monotonic() > deadline:
            log = home / "server.log"
            text = log.read_text(encoding="utf-8", errors="replace")[-1500:]
            raise OSError(f"no Prefect server came up ({ended} tried, {READY:.0f} s at most); log: {log}\n{text}")
        time.sleep(0.5)  # the port was taken meanwhile, or a killed run's server is still ending


def _start(home: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flows.server", "--port", str(port), "--until-eof"]
    with open(home / "server.log", "wb") as log:
        return subprocess.Popen(
            command,
            cwd=CODE,
            env={**os.environ, **QUIET, "PREFECT_HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(2 * STOP)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str, seconds: float = 0.0) -> bool:
    """Whether a Prefect API answers, at the latest after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()  # noqa: S310
            return True
        except urllib.error.HTTPError as error:
            return error.code in (401, 403)  # it wants the auth string
        except (OSError, ValueError):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)


def loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hold(home: Path, url: str) -> IO[str] | None:
    """The lock of a server's database, kept while the file is open; None when another server has it."""
    home.mkdir(parents=True, exist_ok=True)
    file = open(home / "server.lock", "a+", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    file.write(url)
    file.flush()
    return file


def _end_at_eof() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP)
    os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.server", description=__doc__.split("\n\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1; another one needs an auth string")
    parser.add_argument("--port", type=int, default=4200, help="default 4200")
    parser.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        require()
        if not loopback(options.host) and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
            raise ValueError(
                f"{options.host} can be reached from outside, and whoever reaches a Prefect API can run commands: "
                "set PREFECT_SERVER_API_AUTH_STRING=user:password (and PREFECT_API_AUTH_STRING, the same, where "
                "flows and workers run), or keep to 127.0.0.1"
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    url = f"http://{options.host}:{options.port}/api"
    # the UI's own default is port 4200, whatever port the server has
    ours = {**QUIET, "PREFECT_HOME": str(Path.cwd() / HOME), "PREFECT_SERVER_UI_API_URL": url}
    for name, value in ours.items():
        os.environ.setdefault(name, value)
    home = Path(os.environ["PREFECT_HOME"]).expanduser()
    lock = _hold(home, "" if options.until_eof else url)
    if lock is None:
        where = (home / "server.lock").read_text(encoding="utf-8").strip() or "for one run, which ends it"
        print(f"error: a Prefect server of {home} runs already: {where}", file=sys.stderr)
        return BUSY if options.until_eof else 2
    if options.until_eof:
        threading.Thread(target=_end_at_eof, daemon=True).start()
    else:
        print(f"database and logs: {home}\nin other shells:   export PREFECT_API_URL={url}", flush=True)
    sys.argv = ["prefect", "--no-prompt", "server", "start", "--host", options.host, "--port", str(options.port)]
    runpy.run_module("prefect", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
