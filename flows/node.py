"""Stages on other machines: `meta: {pool: gpu}` in dvc.yaml sends a stage to the work pool `gpu`.

The head (where `flows.reproduce` runs) sends what the stage needs to the DVC remote and asks for a run of the
deployment `node/gpu`. A worker takes it: the flow `node` checks out the same revision in a workspace of its own,
fetches the inputs, runs the stage and sends back what it made, with the run-cache entry. The head then has
`dvc repro` restore the stage from the run-cache, so each `dvc.lock` has one writer, and it is the head.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx
from prefect import flow, get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    LogFilter,
    LogFilterFlowRunId,
    LogFilterTimestamp,
    WorkerFilter,
    WorkerFilterStatus,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelling, Crashed

from flows import patience, runs, walk, workspace

POOL, DEPLOYMENT = "gpu", "node/gpu"
ATTEMPTS = 2
"""Nodes that a stage may be lost on before it fails."""
WAIT = 600.0
"""Seconds (UNFORGE_NODE_WAIT) without a worker online, or between a worker taking a run and its start."""
LOST = 120.0
"""Seconds (UNFORGE_NODE_LOST) without a sign of life after which a node is given up."""
BEAT = 5.0
"""Seconds between a node's signs of life."""
POLL = 1.0
UNKNOWN = "its node"
LONGEST = 100_000
"""Characters of a line that go to the server; the log on the node has all."""
ONLINE = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))

T = TypeVar("T")


class NodeLostError(Exception):
    """Nothing is known about the stage: its node crashed or is silent."""


# the head


def dispatch(
    root: Path,
    stage: str,
    upstream: frozenset[str],
    line: Callable[[str, str], None],
    *,
    timeout: float | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Have a stage run on a node and restore what it made here; exit status, 130 when `stop` was set.

    `line` is called with the stage and each line of the node's log, which goes to `walk.log_path` too. A run that
    the remote has already is not repeated. Raises ValueError for what the user has to mend (git not committed, no
    deployment, no worker, an input that must not be passed on), ConnectionError when the remote or the Prefect
    server stay away.
    """
    root, stop = root.resolve(), stop or threading.Event()
    log = walk.log_path(root, stage)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:

        def say(text: str) -> None:
            file.write(text + "\n")
            file.flush()
            line(stage, text)

        try:
            if not _computed(root, stage, upstream, say, timeout, stop):
                return 1
        except InterruptedError:
            say("interrupted")
            return 130
        except (ValueError, ConnectionError) as error:
            say(f"error: {error}")
            raise
    return _restore(root, stage, line, stop)


def _computed(
    root: Path,
    stage: str,
    upstream: frozenset[str],
    say: Callable[[str], None],
    timeout: float | None,
    stop: threading.Event,
) -> bool:
    """Whether the stage's run is in the cache of this clone: because the remote had it, or because a node made it."""
    include = bool(os.environ.get("UNFORGE_INCLUDE_RESTRICTED"))
    say(f"sending what {', '.join(sorted(upstream)) or 'no other stage'} made, where the remote lacks it")
    told = runs.call(root, ["send-inputs", stage, *["--include-restricted"] * include], say, stop)
    if not told:
        say("this run is in the run-cache: no node is needed")
        return True
    revision, repository = _source(root)
    parameters = {
        "stage": stage,
        "revision": revision,
        "repository": repository,
        "told": told,
        "timeout": timeout,
        "include_restricted": include,
    }
    lost = []
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if not _on_a_node(parameters, say, stop):
                return False
        except NodeLostError as error:
            lost.append(str(error))
            say(f"attempt {attempt} of {ATTEMPTS}: {error}")
        if runs.call(root, ["receive-run", stage], say, stop) is not None:
            return True
        if len(lost) < attempt:
            raise ValueError(f"the node finished {stage} and left no run of it on the remote: do both use the same?")
    raise ValueError(f"{stage} was lost on {ATTEMPTS} nodes: {'; '.join(lost)}")


def _source(root: Path) -> tuple[str, str]:
    """The revision that is checked out, and where a node gets it. ValueError when it cannot."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        return done.stdout.strip()

    revision = git("rev-parse", "--verify", "-q", "HEAD")
    if not revision:
        raise ValueError(f"{root} has no commit: a node checks out a revision")
    given = os.environ.get("UNFORGE_REPOSITORY", "")
    if given:
        return revision, _without_credentials(given)
    origin = git("config", "--get", "remote.origin.url")
    if not origin:
        return revision, str(root)
    if not git("for-each-ref", "--contains", revision, "refs/remotes/origin"):
        raise ValueError(
            f"origin does not have revision {revision[:12]}: push it, or set UNFORGE_REPOSITORY to where a node gets it"
        )
    return revision, str((root / origin).resolve()) if (root / origin).is_dir() else _without_credentials(origin)


def _without_credentials(url: str) -> str:
    """Parameters of a flow run are shown to everybody: a node has credentials of its own."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return url


@contextmanager
def _api() -> Iterator[SyncPrefectClient]:
    """A client that gives up at once: who uses it decides how long to go on."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
        yield client


def _patiently(ask: Callable[[], T], stop: threading.Event) -> T:
    """An answer of the Prefect server. ConnectionError when it stays away, InterruptedError when `stop` is set."""

    def once() -> T:
        try:
            return ask()
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                raise
            raise ConnectionError(f"the Prefect server at {PREFECT_API_URL.value()} is away: {error}") from None

    return patience.patiently(once, stop)


def _on_a_node(parameters: dict[str, Any], say: Callable[[str], None], stop: threading.Event) -> bool:
    """Ask for one run of the deployment and follow it to its end; whether it succeeded. Raises NodeLostError."""
    key = str(uuid.uuid4())  # an answer that got lost must not start a second run

    def ask() -> FlowRun:
        run = run_deployment(
            DEPLOYMENT, parameters=parameters, timeout=0, flow_run_name=parameters["stage"], idempotency_key=key
        )
        assert isinstance(run, FlowRun)
        return run

    with _api() as client:
        try:
            run = _patiently(ask, stop)
        except ObjectNotFound:
            raise ValueError(
                f"{PREFECT_API_URL.value()} has no deployment {DEPLOYMENT}: run `python -m flows.deploy`"
            ) from None
        say(f"asked the pool {POOL} for a node: flow run {run.id}")
        try:
            return _follow(client, run.id, say, stop)
        except BaseException as error:
            if not isinstance(error, NodeLostError):
                _cancel(client, run.id)
            raise


def _follow(client: SyncPrefectClient, id: uuid.UUID, say: Callable[[str], None], stop: threading.Event) -> bool:
    wait, silence = patience.seconds("UNFORGE_NODE_WAIT", WAIT), patience.seconds("UNFORGE_NODE_LOST", LOST)
    log = _Log(client, id, say)
    sign: object = None
    alive = looked = time.monotonic()
    node = UNKNOWN
    while True:
        run = _patiently(lambda: client.read_flow_run(id), stop)
        _patiently(log.read, stop)
        state, now = run.state, time.monotonic()
        assert state is not None
        if now - looked > 10 * POLL:  # this side was asleep or cut off: that is not the node's silence
            alive += now - looked
        looked = now
        if sign != (sign := (state.id, run.labels.get("unforge.beat"))):
            alive = now
        node = str(run.labels.get("unforge.node", node))
        if state.is_final():
            log.drain(stop)
            if state.is_crashed() and node == UNKNOWN:
                raise NodeLostError(f"a worker could not start it ({state.message}): its UNFORGE_HOME must be a clone")
            if state.is_crashed():
                raise NodeLostError(f"{node} crashed ({state.message})")
            if not state.is_completed():
                say(f"{state.name} on {node}: {state.message}")
            return state.is_completed()
        if state.is_scheduled():
            if _patiently(lambda: client.read_workers_for_work_pool(POOL, worker_filter=ONLINE), stop):
                alive = now  # they are busy, or one is about to take it
            elif now - alive > wait:
                raise ValueError(
                    f"no worker of the pool {POOL} was online for {wait:.0f} s: start one on a node, in a clone: "
                    f"UNFORGE_HOME=$PWD prefect worker start --pool {POOL} --type process --limit 1"
                )
        elif now - alive > (silence if state.is_running() or state.is_cancelling() else wait):
            crashed: State[Any] = Crashed(message=f"{node} gave no sign of life for {now - alive:.0f} s")
            _patiently(partial(client.set_flow_run_state, id, crashed, force=True), stop)
            raise NodeLostError(crashed.message)
        if stop.wait(POLL):
            raise InterruptedError


def _cancel(client: SyncPrefectClient, id: uuid.UUID) -> None:
    with suppress(httpx.HTTPError):  # the server is away: the node runs to its end, and its run is found next time
        client.set_flow_run_state(id, Cancelling())


class _Log:
    """Lines that a flow run wrote and that were not told yet."""

    def __init__(self, client: SyncPrefectClient, id: uuid.UUID, say: Callable[[str], None]) -> None:
        self.client, self.id, self.say = client, id, say
        self.since: Any = None
        self.told: set[uuid.UUID] = set()
        self.last = ""

    def read(self) -> None:
        kind = LogFilter(
            flow_run_id=LogFilterFlowRunId(any_=[self.id]), timestamp=LogFilterTimestamp(after_=self.since)
        )
        offset = 0
        while lines := self.client.read_logs(kind, limit=200, offset=offset):
            for entry in lines:
                if entry.id not in self.told:
                    self.told.add(entry.id)
                    self.last = entry.message
                    self.say(entry.message)
                self.since = entry.timestamp
            offset += len(lines)

    def drain(self, stop: threading.Event) -> None:
        """Lines arrive in bundles, the last ones after the run has ended."""
        deadline = time.monotonic() + 5
        while not self.last.startswith("Finished in state") and time.monotonic() < deadline and not stop.wait(0.25):
            _patiently(self.read, stop)


def _restore(root: Path, stage: str, line: Callable[[str, str], None], stop: threading.Event) -> int:
    """Let DVC take the run from its cache, so that the lock is written here. ValueError when it computes instead."""
    log = walk.log_path(root, stage)
    before = log.read_text(encoding="utf-8")
    runner = walk.Runner(root, None, line)
    with _ended(runner, stop):
        status = runner(stage)
    text = log.read_text(encoding="utf-8", errors="replace")
    log.write_text(before + text, encoding="utf-8")
    if status == 0 and "is cached - skipping run" not in text and "didn't change, skipping" not in text:
        raise ValueError(f"{stage} was computed again here: its inputs changed while a node worked on it")
    return status


@contextmanager
def _ended(runner: walk.Runner, stop: threading.Event) -> Iterator[None]:
    """End what the runner runs once `stop` is set."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            if stop.is_set():
                runner.end_all()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        runner.close()


# the node


@flow(name="node", flow_run_name="{stage}", persist_result=False)
def node(
    stage: str,
    revision: str,
    repository: str,
    told: dict[str, Any],
    timeout: float | None = None,
    include_restricted: bool = False,
) -> None:
    """Run one stage of a revision on this machine.

    `repository` is where git gets the revision (UNFORGE_REPOSITORY of this machine goes before it), `told` what the
    head says of the stage (`runs.send_inputs`), `timeout` seconds for the stage alone. Credentials are those of
    this machine. Fails with the last lines of the stage's log.
    """
    say = get_run_logger().info
    stop = threading.Event()
    place = workspace.place()
    name = f"{socket.gethostname()}:{place}"
    runner = walk.Runner(place, timeout, lambda _, text: say(text[-LONGEST:].replace("\0", "")))
    with _beating(name, stop), _ended(runner, stop), workspace.hold(place, say, stop):
        say(f"{stage} of {revision[:12]} on {name}")
        workspace.check_out(place, os.environ.get("UNFORGE_REPOSITORY") or repository, revision, say, stop)
        runs.call(place, ["receive-inputs", stage], say, stop, told)
        path = [str(place / "src"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(p for p in path if p)  # this revision's code, not the worker's
        status = 130 if stop.is_set() else runner(stage)
        if stop.is_set():
            raise InterruptedError(f"{stage} was ended: its flow run is over")
        if status != 0:
            raise RuntimeError(f"{stage}: {walk.tail(walk.log_path(place, stage), status)}")
        include = ["--include-restricted"] * include_restricted
        runs.call(place, ["send-run", stage, *include], say, stop)
        say(f"{stage} is done, and what it made is on the remote")


@contextmanager
def _beating(name: str, stop: threading.Event) -> Iterator[None]:
    """Give signs of life; set `stop` when the flow run is over for everybody else (given up, or cancelled)."""
    id, done = uuid.UUID(runtime.flow_run.id), threading.Event()

    def beat() -> None:
        count = 0
        while True:
            count += 1
            try:
                with _api() as client:
                    client.update_flow_run_labels(id, {"unforge.beat": count, "unforge.node": name})
                    state = client.read_flow_run(id).state
                if state is not None and (state.is_final() or state.is_cancelling()):
                    stop.set()
            except httpx.HTTPError:  # cut off: the stage goes on, and the network may come back before it ends
                pass
            if done.wait(BEAT):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(BEAT)
