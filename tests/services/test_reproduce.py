"""`unforge reproduce` with a real Prefect server, on small DVC repositories."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, LogFilter
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from flows import locks
from tests.services.servers import ROOT, PrefectServer
from tests.unit.flows.test_walk import DVC, STAGES, repository, stage

pytestmark = pytest.mark.services

GATE = "touch started-{0}; while [ ! -e go ]; do sleep 0.05; done; cat seed.txt > {0}.txt"
"""A stage that runs until the file `go` is there."""
DEADLINE = 180.0


def gated(*names: str) -> dict[str, object]:
    return {name: stage(f"{name}.txt", ["seed.txt"], GATE.format(name)) for name in names}


@pytest.fixture
def client(prefect_server: PrefectServer) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_server.api}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, str]:
    """An environment in which no Prefect server is configured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**kept, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def served(alone: dict[str, str], prefect_server: PrefectServer) -> dict[str, str]:
    return {**alone, **prefect_server.environment}


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `python -m flows.reproduce`, or what `-c` or `-m` name; what still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def run(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
        other = arguments[:1] in (("-c",), ("-m",))
        command = [sys.executable, *(arguments if other else ("-m", "flows.reproduce", *arguments))]
        process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def until(what: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """What `what` gives once it is true. Fails when the process ends before, or in the end."""
    deadline = time.monotonic() + DEADLINE
    while not (found := what()):
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def said(process: subprocess.Popen[str]) -> str:
    """All that a process says until it ends."""
    return process.communicate(timeout=4 * DEADLINE)[0]


def groups(folder: Path) -> list[int]:
    """Process groups of the stages that run, once each stage that started has its record."""
    started = list(folder.glob("started-*"))
    records = list((folder / ".unforge/running").glob("*.json"))
    try:
        return [json.loads(r.read_text())["group"] for r in records] if len(records) == len(started) > 0 else []
    except ValueError:
        return []


def gone(group: int) -> bool:
    """Whether no process of a group runs; one that nobody has waited for does not."""
    members = [p for p in psutil.process_iter() if p.pid == group or (psutil.pid_exists(p.pid) and _group(p) == group)]
    return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in members)


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def runs(client: SyncPrefectClient, folder: Path) -> list[FlowRun]:
    """Flow runs of a workspace, oldest first."""
    tag = f"workspace:{socket.gethostname()}:{folder.resolve()}"
    found = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate({"tags": {"all_": [tag]}}))
    return sorted(found, key=lambda run: run.created)  # type: ignore[arg-type, return-value]


def table(client: SyncPrefectClient, run: FlowRun) -> tuple[str, dict[str, dict[str, Any]]]:
    """Description and rows by stage of a run's table artifact."""
    (found,) = client.read_artifacts(
        artifact_filter=ArtifactFilter.model_validate({"type": {"any_": ["table"]}}),
        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run.id]}}),
    )
    assert found.key == "reproduce"
    return str(found.description), {row["stage"]: row for row in json.loads(found.data)}  # type: ignore[arg-type]


def state(run: FlowRun) -> tuple[str, str | None]:
    assert run.state is not None
    return run.state.name or "", run.state.message


def test_a_parallel_run_leaves_what_dvc_repro_leaves(
    tmp_path: Path, client: SyncPrefectClient, served: dict[str, str], start: Start
) -> None:
    stages = {
        **STAGES,
        "alone": stage("alone.txt", ["left_code.txt"], "echo said by alone; cp left_code.txt alone.txt"),
    }
    one, two = repository(tmp_path / "one", stages), repository(tmp_path / "two", stages)
    text = said(process := start(one, served, "--jobs", "3"))
    assert process.returncode == 0, text
    assert "5 ran, 0 were fresh, 0 failed, 0 not started" in text
    assert "] done a_both" in text
    assert "said by alone" not in text
    subprocess.run([*DVC, "repro", "-q"], cwd=two, check=True)
    locks.canonical(two)
    for name in ("dvc.lock", "z.txt", "left.txt", "right.txt", "both.txt", "alone.txt"):
        assert (one / name).read_bytes() == (two / name).read_bytes()

    (run,) = runs(client, one)
    assert state(run)[0] == "Completed"
    tasks = {task.name: task for task in client.read_task_runs(flow_run_filter=_only(run))}
    assert set(tasks) == set(stages)
    needs = {str(item.id) for item in tasks["a_both"].task_inputs["wait_for"]}  # type: ignore[union-attr]
    assert needs == {str(tasks["left"].id), str(tasks["right"].id)}
    logs = client.read_logs(LogFilter.model_validate({"flow_run_id": {"any_": [run.id]}}))
    assert [log for log in logs if "said by alone" in log.message and log.task_run_id == tasks["alone"].id]
    assert "said by alone" in (one / ".unforge/logs/alone.log").read_text()
    head, rows = table(client, run)
    assert {row["result"] for row in rows.values()} == {"ran"}
    assert "5 ran, 0 cached" in head

    # a target: only it and what it needs; the rest of what it needs is cached
    (one / "left_code.txt").write_text("other\n")
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--allow-empty"], cwd=one)
    text = said(start(one, served, "left"))
    assert "1 ran, 1 were fresh" in text
    head, rows = table(client, runs(client, one)[-1])
    assert {name: row["result"] for name, row in rows.items()} == {"left": "ran", "z_source": "cached"}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=one, capture_output=True, text=True).stdout.strip()
    assert f"Revision {commit}:" in head


def _only(run: FlowRun) -> FlowRunFilter:
    return FlowRunFilter.model_validate({"id": {"any_": [run.id]}})


def test_a_failing_stage_stops_its_dependants_only(
    tmp_path: Path, client: SyncPrefectClient, served: dict[str, str], start: Start
) -> None:
    stages = {**STAGES, "left": stage("left.txt", ["z.txt"], "echo no such thing; exit 3")}
    folder = repository(tmp_path / "one", stages)
    text = said(process := start(folder, served))
    assert process.returncode == 1, text
    assert "3 ran, 0 were fresh, 1 failed, 1 not started" in text
    assert "not started a_both: it needs left" in text
    assert "Traceback" not in text
    (run,) = runs(client, folder)
    assert state(run) == ("Failed", "1 of 5 stages failed: left; 1 not started")
    _, rows = table(client, run)
    results = {name: row["result"] for name, row in rows.items()}
    assert results == {
        "left": "failed", "a_both": "not started", "z_source": "ran", "right": "ran", "alone": "ran"
    }  # fmt: skip
    assert "no such thing" in rows["left"]["why"]
    assert "it needs left" in rows["a_both"]["why"]


def test_without_a_server_one_is_started_and_ends_with_the_run(
    tmp_path: Path, alone: dict[str, str], start: Start
) -> None:
    folder = repository(tmp_path / "one", STAGES)
    text = said(process := start(folder, alone))
    assert process.returncode == 0, text
    port = int(re.findall(r"UI: +http://127\.0\.0\.1:(\d+)", text)[0])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    database = sqlite3.connect(folder / ".unforge/prefect/prefect.db")
    assert database.execute("select state_type from flow_run").fetchall() == [("COMPLETED",)]
    assert set(database.execute("select name, state_type from task_run")) == {(name, "COMPLETED") for name in STAGES}
    assert database.execute("select count(*) from log where message like '%5 stages to run%'").fetchone() == (1,)
    database.close()
    assert not (tmp_path / ".prefect" / "prefect.db").exists()


def test_the_server_of_a_killed_run_ends_and_its_stages_at_the_next_start(
    tmp_path: Path, alone: dict[str, str], served: dict[str, str], start: Start
) -> None:
    folder = repository(tmp_path / "one", gated("a", "b"))
    process = start(folder, alone)
    found = until(lambda: len(found := groups(folder)) == 2 and found, process)
    servers = [p for p in psutil.Process(process.pid).children() if "flows.server" in p.cmdline()]
    assert len(servers) == 1
    process.kill()
    process.communicate()
    until(lambda: not servers[0].is_running() or servers[0].status() == psutil.STATUS_ZOMBIE)
    for name in "ab":
        (folder / f"started-{name}").unlink()
    again = start(folder, served)
    until(lambda: len(groups(folder)) == 2, again)
    assert all(gone(group) for group in found)
    (folder / "go").touch()
    text = said(again)
    assert "ended a, which a killed run had left running" in text
    assert "2 ran, 0 were fresh" in text


def test_a_second_run_beside_one_is_refused_and_harms_nothing(
    tmp_path: Path, client: SyncPrefectClient, served: dict[str, str], start: Start
) -> None:
    folder = repository(tmp_path / "one", gated("a"))
    first = start(folder, served)
    until(lambda: groups(folder), first)
    text = said(command := start(folder, served))
    assert command.returncode == 2
    assert f"another run is at work in {folder} (process {first.pid}" in text

    # as a worker would run it
    flow = "from flows.reproduce import reproduce; print(repr(reproduce(return_state=True).type))"
    text = said(start(folder, served, "-c", flow))
    one, two = runs(client, folder)
    assert state(one)[0] == "Running"
    assert state(two)[0] == "Failed", text
    assert "another run is at work" in (state(two)[1] or "")
    assert len(groups(folder)) == 1

    (folder / "go").touch()
    text = said(first)
    assert first.returncode == 0, text
    assert state(runs(client, folder)[0])[0] == "Completed"


def test_a_run_whose_process_is_gone_is_set_to_crashed(
    tmp_path: Path, client: SyncPrefectClient, served: dict[str, str], start: Start
) -> None:
    folder = repository(tmp_path / "one", gated("a"))
    other = repository(tmp_path / "other", gated("a"))
    beside = start(other, served)
    process = start(folder, served)
    (group,) = until(lambda: groups(folder), process)
    until(lambda: groups(other), beside)
    process.kill()
    process.communicate()
    assert state(runs(client, folder)[0])[0] == "Running"
    (folder / "started-a").unlink()
    again = start(folder, served)
    until(lambda: groups(folder) not in ([], [group]), again)
    assert gone(group)
    assert [state(run) for run in runs(client, folder)] == [("Crashed", "its process is gone"), ("Running", None)]
    assert state(runs(client, other)[0])[0] == "Running"
    (folder / "go").touch()
    (other / "go").touch()
    assert "1 ran" in said(again)
    assert "1 ran" in said(beside)


def test_a_stage_that_takes_too_long_is_ended(
    tmp_path: Path, client: SyncPrefectClient, served: dict[str, str], start: Start
) -> None:
    folder = repository(tmp_path / "one", {**gated("a"), "quick": stage("q.txt", ["seed.txt"])})
    process = start(folder, served, "--timeout", "10")
    (group,) = until(lambda: groups(folder), process)
    text = said(process)
    assert process.returncode == 1
    assert "FAILED a: ended, it took too long" in text
    assert "1 ran" in text
    assert gone(group)


UNFORGE = ("-m", "unforge.cli", "reproduce")


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [((), signal.SIGTERM, 130), (UNFORGE, signal.SIGINT, 130), (UNFORGE, signal.SIGKILL, -signal.SIGKILL)],
    ids=["SIGTERM", "SIGINT to unforge", "SIGKILL to unforge"],
)
def test_a_signal_ends_every_stage(
    tmp_path: Path,
    client: SyncPrefectClient,
    served: dict[str, str],
    start: Start,
    command: tuple[str, ...],
    number: signal.Signals,
    status: int,
) -> None:
    folder = repository(tmp_path / "one", gated("a", "b", "c"))
    (folder / "params.yaml").touch()
    (folder / "profiles").mkdir()
    (folder / "flows").symlink_to(ROOT / "flows")
    process = start(folder, served, *command)
    found = until(lambda: len(found := groups(folder)) == 2 and found, process)
    process.send_signal(number)
    text = said(process)
    assert process.returncode == status, text
    assert "interrupted" in text
    assert "Traceback" not in text
    assert all(gone(group) for group in found)
    assert not list((folder / ".unforge/running").iterdir())
    (run,) = runs(client, folder)
    assert state(run)[0] == "Crashed"
    assert len(list(folder.glob("started-*"))) == 2


def test_cancel_in_prefect_ends_every_stage(
    tmp_path: Path, client: SyncPrefectClient, served: dict[str, str], start: Start
) -> None:
    folder = repository(tmp_path / "one", gated("a", "b"))
    serve = "from flows.reproduce import reproduce; reproduce.serve(name='toy', pause_on_shutdown=False)"
    server = start(folder, served, "-c", serve)

    def deployment() -> Any:
        found = client.read_deployments()
        return next((d for d in found if d.name == "toy"), None)

    run = client.create_flow_run_from_deployment(
        until(deployment, server).id, parameters={"root": str(folder), "jobs": 2}
    )
    found = until(lambda: len(found := groups(folder)) == 2 and found, server)
    client.set_flow_run_state(run.id, Cancelling())
    until(lambda: state(client.read_flow_run(run.id))[0] == "Cancelled", server)
    until(lambda: all(gone(group) for group in found), server)
    (folder / "go").touch()
    text = said(start(folder, served))  # nothing is left that would be in the way
    assert "2 ran" in text, text
