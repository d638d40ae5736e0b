"""The stale stages of the DVC graph side by side, as a Prefect flow: one task a stage, logs and tables in its UI.

DVC is the only truth: Prefect caches, keeps and repeats nothing here. The walk is that of `flows.walk`; locks are
byte for byte those of a serial `dvc repro`.

    python -m flows.reproduce [TARGET ...] [--jobs 2] [--since REV] [--timeout SECONDS] [--nodes]
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # the command sets Prefect's environment, and needs no Prefect when nothing is stale
    from flows import command

    sys.exit(command.main())

import json
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Crashed, Failed

from flows import locks, since, walk

NAME = "reproduce"
SECONDS = Path(".unforge/seconds.json")
STARTING = 120.0
"""Seconds after which a run that has no process yet will never have one."""
LONGEST = 100_000
"""Characters of a log that go to the server at once; the file has all."""

echo: Callable[[str], None] = lambda line: None  # noqa: E731
"""Called with each line of progress, which the log of the run has too. The command prints it."""


@flow(name=NAME, persist_result=False, retries=0)
def reproduce(
    targets: list[str] | None = None,
    jobs: int = 2,
    since: str | None = None,
    timeout: float | None = None,
    nodes: bool = False,
    root: str | None = None,
) -> Any:
    """Run what is stale among `targets` (stages, `sparsevit.table_4`, dvc.yaml files; default: all), `jobs` at a time.

    `since`: only what changed since a git revision, and what follows from it; `timeout`: seconds a stage may take;
    `nodes`: stages of the gpu pool run on its workers; `root`: the workspace (default: the working directory).
    Gives `ran` (seconds by stage), `failed`, `skipped`, `fresh` (a count) and `revision`. The run ends Failed when a
    stage failed (all that does not need it ran), and when another run is at work in the workspace.
    """
    here = Path(root or Path.cwd()).resolve()
    _outlive_the_worker()
    echo(f"UI:   {flow_run.ui_url}")
    _sign(here)
    try:
        with walk.alone(here):
            for name in reconcile(here):
                get_run_logger().warning("run %s had no process any more: set to Crashed", name)
            report = _reproduce(here, targets or [], max(1, jobs), since, timeout, nodes)
    except ValueError as error:
        return Failed(message=str(error), data=error)
    if report["failed"]:
        total = len(report["ran"]) + len(report["failed"]) + len(report["skipped"])
        text = f"{len(report['failed'])} of {total} stages failed: {', '.join(sorted(report['failed']))}"
        text += f"; {len(report['skipped'])} not started" if report["skipped"] else ""
        return Failed(message=text[:2000], data=report)
    return report


def _reproduce(
    root: Path, targets: list[str], jobs: int, revision: str | None, timeout: float | None, nodes: bool
) -> dict[str, Any]:
    """The walk, inside of the flow run. The caller holds `walk.alone(root)`."""
    locks.canonical(root)
    graph = walk.read_graph(root)
    wanted = since.wanted(root, graph, targets, revision)
    log = get_run_logger()
    clock = Clock(root, graph, graph.pending(wanted), jobs)
    elsewhere = frozenset(s for s, pool in graph.pool.items() if pool == "gpu") if nodes else frozenset[str]()
    loggers: dict[str, Any] = {}
    states: dict[str, State[Any]] = {}
    statuses: dict[str, int] = {}

    def line(stage: str, text: str) -> None:
        with suppress(Exception):  # a log that cannot be sent stops no stage: the file has it
            loggers[stage].info(text[-LONGEST:].replace("\0", ""))

    runner, stop = walk.Runner(root, timeout, line), threading.Event()

    @task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False, retries=0)
    def one(stage: str) -> Any:
        loggers[stage] = get_run_logger()
        if stage in elsewhere:
            from flows import node

            status = node.dispatch(root, stage, graph.upstream[stage], line, timeout=timeout, stop=stop)
        else:
            status = runner(stage)
        statuses[stage] = status
        if status == 0:
            return None
        end = Cancelled if runner.ended else Failed
        return end(message=walk.tail(walk.log_path(root, stage), status).splitlines()[0])

    def run(stage: str) -> int:
        clock.started[stage] = time.monotonic()
        needs = [states[u] for u in sorted(graph.upstream[stage]) if u in states]
        states[stage] = one(stage, wait_for=needs, return_state=True)
        if stage not in statuses:
            states[stage].result()  # raises what kept the stage from running
            raise RuntimeError(f"Prefect did not run it: {states[stage].message}")
        return statuses[stage]

    def say(text: str) -> None:
        echo(text)
        log.info(text)

    say(
        f"{len(clock.todo)} stages to run, {jobs} at a time; {len(graph.ancestors(wanted)) - len(clock.todo)} are fresh"
    )
    bar = Bar(log)

    def report(progress: walk.Progress) -> None:
        clock.end(progress)
        say(f"{progress}{clock.remaining()}")
        bar.show(100 * len(clock.ended) / len(clock.todo), f"{progress}{clock.remaining()}")

    try:
        result = walk.follow(root, graph, wanted, jobs, run, report, elsewhere)
    except BaseException:
        stop.set()
        runner.end_all()
        raise
    finally:
        runner.close()
        locks.canonical(root)
    bar.show(100, f"{len(result.ran)} ran, {len(result.failed)} failed, {len(result.skipped)} not started", last=True)
    head = _head(root)
    _table(log, graph.ancestors(wanted), result, head)
    return {
        "ran": result.ran,
        "failed": result.failed,
        "skipped": result.skipped,
        "fresh": result.fresh,
        "revision": head,
    }


def _head(root: Path) -> str:
    """The commit of the work tree, `-dirty` when tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return run.stdout.strip() or "no commit"


def _table(log: Any, needed: set[str], result: walk.Result, head: str) -> None:
    """The artifact `reproduce`: what happened to each stage that the targets need, failures first."""
    rows: list[dict[str, Any]]
    rows = [{"stage": s, "result": "failed", "seconds": None, "why": why} for s, why in sorted(result.failed.items())]
    rows += [
        {"stage": s, "result": "not started", "seconds": None, "why": f"it needs {cause}, which failed"}
        for s, cause in sorted(result.skipped.items())
    ]
    rows += [{"stage": s, "result": "ran", "seconds": round(t, 1), "why": ""} for s, t in sorted(result.ran.items())]
    named = {row["stage"] for row in rows}
    rows += [{"stage": s, "result": "cached", "seconds": None, "why": ""} for s in sorted(needed - named)]
    text = f"Revision {head}: {len(result.ran)} ran, {result.fresh} cached, {len(result.failed)} failed, "
    text += f"{len(result.skipped)} not started"
    try:
        create_table_artifact(key=NAME, table=rows, description=text)
    except Exception as error:  # the stages are done, whatever the server says
        log.warning("no table artifact: %s", error)


@dataclass
class Bar:
    """The progress artifact. It is shown when the server answers; the run goes on when not."""

    log: Any
    artifact: Any = None
    next: float = 0.0

    def show(self, percent: float, text: str, last: bool = False) -> None:
        now = time.monotonic()
        if now < self.next and not last:
            return
        self.next = now + 1
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                if self.artifact is None:
                    self.artifact = create_progress_artifact(percent, key=f"{NAME}-progress", description=text)
                else:
                    update_progress_artifact(self.artifact, percent, description=text)
        except Exception as error:
            self.next = now + 30
            self.log.warning("no progress artifact: %s", error)


@dataclass
class Clock:
    """An estimate of the time left, from how long stages took in this run and in earlier ones here."""

    root: Path
    graph: walk.Graph
    todo: set[str]
    jobs: int
    started: dict[str, float] = field(default_factory=dict)
    ended: dict[str, bool] = field(default_factory=dict)
    known: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with suppress(OSError, ValueError):
            self.known = {str(s): float(t) for s, t in json.loads((self.root / SECONDS).read_text()).items()}

    def end(self, progress: walk.Progress) -> None:
        self.ended[progress.stage] = progress.ok
        log = walk.log_path(self.root, progress.stage)
        restored = log.is_file() and b"is cached - skipping run" in log.read_bytes()[-4096:]
        if progress.ok and not restored:
            self.known[progress.stage] = round(progress.seconds, 1)
            temporary = self.root / f"{SECONDS}.new"
            with suppress(OSError):  # an estimate is not worth a run
                temporary.write_text(json.dumps(self.known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                os.replace(temporary, self.root / SECONDS)

    def remaining(self) -> str:
        """`; about 3 min left`, or nothing while less than half of what is left has a known time."""
        failed = {stage for stage, ok in self.ended.items() if not ok}
        left = {s for s in self.todo if s not in self.ended and not (failed and self.graph.ancestors([s]) & failed)}
        timed = [s for s in left if s in self.known]
        if not left or 2 * len(timed) < len(left):
            return ""
        mean = sum(self.known[s] for s in timed) / len(timed)
        now = time.monotonic()
        each = [max(0.0, self.known.get(s, mean) - (now - self.started.get(s, now))) for s in left]
        seconds = max(sum(each) / self.jobs, max(each))
        return f"; about {seconds:.0f} s left" if seconds < 100 else f"; about {seconds / 60:.0f} min left"


def workspace(root: Path) -> str:
    """The tag of the flow runs that work in `root` on this machine."""
    return f"workspace:{socket.gethostname()}:{root.resolve()}"


def _sign(root: Path) -> None:
    """Tag this flow run with its workspace and process, by which `reconcile` finds it when that is gone."""
    process = psutil.Process()
    mine = [workspace(root), f"process:{process.pid}:{process.create_time():.0f}"]
    with get_client(sync_client=True) as client:
        others = [t for t in client.read_flow_run(flow_run.id).tags if not t.startswith(("workspace:", "process:"))]
        client.update_flow_run(flow_run.id, tags=[*others, *mine])


def reconcile(root: Path) -> list[str]:
    """Set the flow runs of a workspace to Crashed whose process is gone; their names. For whoever holds `walk.alone`.

    A zombie would count as running for ever, and block a schedule that lets one run at a time.
    """
    active = [StateType.RUNNING, StateType.CANCELLING, StateType.PENDING]
    found = []
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": [NAME]}}),
            flow_run_filter=FlowRunFilter.model_validate(
                {"tags": {"all_": [workspace(root)]}, "state": {"type": {"any_": active}}}
            ),
        )
        for run in runs:
            if run.id != flow_run.id and not _alive(run):
                client.set_flow_run_state(run.id, Crashed(message="its process is gone"), force=True)
                found.append(run.name)
    return found


def _alive(run: FlowRun) -> bool:
    """Whether the process of a run on this machine is there. One that waits for its process has some time."""
    processes = [tag.split(":")[1:] for tag in run.tags if tag.startswith("process:")]
    state = run.state
    if not processes or state is None or state.type == StateType.PENDING:
        return state is not None and (datetime.now(UTC) - state.timestamp).total_seconds() < STARTING
    try:
        return bool(abs(psutil.Process(int(processes[0][0])).create_time() - float(processes[0][1])) < 2)
    except psutil.NoSuchProcess:
        return False


def _outlive_the_worker() -> None:
    """A killed worker leaves this run a console that nobody reads; rich would end the run at its next line."""
    for name in ("", "prefect", "prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            if hasattr(handler, "console"):
                handler.console.on_broken_pipe = lambda: None


def quiet() -> None:
    """Keep Prefect's own lines off the console; its server has them."""
    for handler in logging.getLogger().handlers + logging.getLogger("prefect").handlers:
        handler.setLevel(logging.CRITICAL)
