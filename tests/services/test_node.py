"""Stages on other machines: a real Prefect server, real workers, S3 between the clones, and a network that fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import get_client

from flows import deploy, locks, node, walk
from tests.services.proxy import Proxy
from tests.services.servers import BIN, ROOT, S3, PrefectServer, stop
from tests.unit.flows import clones

pytestmark = pytest.mark.services

NEVER = threading.Event()


def until(what: Callable[[], Any], why: Callable[[], str], seconds: float = 300) -> Any:
    """What `what` returns, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, why()
        time.sleep(0.2)
    return found


@dataclass
class Worker:
    """A machine with a worker of a pool, its own workspace and, for a node, its own way to the network."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.folder / "worker.log").read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL to the worker and to all that it started, as when its machine fails."""
        found = psutil.Process(self.process.pid)
        for process in [found, *found.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


@dataclass
class Team:
    """The servers of a test, and what a head needs to reach them."""

    folder: Path
    s3: S3
    prefect: PrefectServer
    workers: list[Worker]

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **self.s3.environment,
            **self.prefect.environment,
            "UNFORGE_REMOTE": "s3://team/dvc",
            "UNFORGE_HOME": str(ROOT),
            "TRACE": str(self.trace),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "AWS_MAX_ATTEMPTS": "1",
            "PREFECT_HOME": str(self.folder / "prefect"),
        }

    @property
    def trace(self) -> Path:
        """Where stages write down in which folder they ran; not seen by DVC."""
        return self.folder / "trace"

    def ran(self, stage: str) -> list[str]:
        """Folders in which a stage was run, in order, each with the devices it was shown."""
        file = self.trace / stage
        return file.read_text().split() if file.exists() else []

    @contextmanager
    def head(self, command: list[str], folder: Path, **environment: str) -> Iterator[Callable[[], str]]:
        """Runs a command to its end, whose status must be 0; gives what all have said so far."""
        path = self.folder / "head.log"

        def said() -> str:
            logs = sorted(folder.glob(".unforge/logs/*.log"))
            parts = [path, *logs, *(w.folder / "worker.log" for w in self.workers)]
            return "\n".join(f"== {p}\n{p.read_text(errors='replace')[-6000:]}" for p in parts)

        with open(path, "wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env={**self.environment, **environment}, stdout=log, stderr=log
            )
            try:
                yield said
                until(lambda: process.poll() is not None, said)
                assert process.returncode == 0, said()
            finally:
                process.kill()
                process.wait()

    def start(self, pool: str, name: str, **environment: str) -> Worker:
        folder = self.folder / name
        folder.mkdir()
        with open(folder / "worker.log", "wb") as log:
            process = subprocess.Popen(
                [str(BIN / "prefect"), "worker", "start", "--pool", pool, "--type", "process", "--limit", "1"],
                cwd=folder,
                env={**self.environment, "UNFORGE_WORKSPACE": str(folder / "work"), **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        worker = Worker(folder, process)
        self.workers.append(worker)
        until(lambda: "started!" in worker.log, lambda: worker.log)
        return worker


@pytest.fixture(scope="module")
def deployed(prefect_server: PrefectServer) -> PrefectServer:
    """The shared server with the pools, and the deployments that a reproduce over nodes needs."""
    with _environment(prefect_server.environment):
        with get_client(sync_client=True) as client:
            for name in deploy.POOLS:
                deploy.pool(client, name)
        deploy.prefect(ROOT, "deploy", "--name", "gpu", "--name", "reproduce-nodes")
    return prefect_server


@pytest.fixture
def team(s3: S3, deployed: PrefectServer, tmp_path: Path) -> Iterator[Team]:
    made = Team(tmp_path, s3, deployed, [])
    made.trace.mkdir()
    with _environment(made.environment):
        try:
            yield made
        finally:
            for worker in made.workers:
                if worker.process.poll() is None:
                    found = psutil.Process(worker.process.pid).children(recursive=True)
                    stop(worker.process)
                    for left in found:
                        with suppress(psutil.NoSuchProcess):
                            left.kill()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables of this process, which Prefect's settings follow."""
    from prefect.context import refresh_global_settings_context

    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        refresh_global_settings_context()
        yield
    refresh_global_settings_context()


def traced(name: str, command: str, deps: list[str], outs: list[Any], pool: str = "cpu", waits: bool = False) -> Any:
    """A stage that writes down where it runs and with which devices, and may wait for the file `go`."""
    begin = f'echo "$PWD:$CUDA_VISIBLE_DEVICES" >> "$TRACE/{name}"'
    if waits:
        begin += f' && echo $$ > "$TRACE/{name}.pid" && until [ -e "$TRACE/go" ]; do sleep 0.1; done'
    return {"cmd": f"{begin} && {command}", "deps": deps, "outs": outs, "meta": {"pool": pool}}


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def serial(head: Path, folder: Path, team: Team) -> bytes:
    """The lock of a serial `dvc repro` in another clone."""
    other = clones.clone(head, folder)
    (team.trace / "go").touch()
    trace = team.folder / "serial-trace"
    trace.mkdir()
    (trace / "go").touch()
    subprocess.run(
        [*clones.DVC, "repro", "-q"], cwd=other, env={**os.environ, "TRACE": str(trace)}, check=True, timeout=300
    )
    locks.canonical(other)
    return (other / "dvc.lock").read_bytes()


def test_a_network_that_is_away_for_a_while_costs_nothing(team: Team) -> None:
    """The whole way: a deployment on a cpu worker, stages of two pools, one lock, and a node that is cut off."""
    with Proxy(team.s3.ports[0]) as store, Proxy(team.prefect.port) as api:
        head = clones.repository(
            team.folder / "head",
            {
                "prepare": traced("prepare", "mkdir data && cp seed.txt data/a && echo t > words.md", ["seed.txt"],
                                  ["data", {"words.md": {"cache": False}}]),
                "train": traced("train", "cat data/a words.md code.txt > model.txt", ["data", "words.md", "code.txt"],
                                ["model.txt"], "gpu", waits=True),
                "table": traced("table", "cat model.txt > table.md", ["model.txt"], [{"table.md": {"cache": False}}]),
            },
        )  # fmt: skip
        team.start("cpu", "cpu")
        worker = team.start(
            "gpu", "node", AWS_ENDPOINT_URL=store.url, PREFECT_API_URL=f"{api.url}/api", CUDA_VISIBLE_DEVICES="0,1"
        )
        command = [str(BIN / "prefect"), "deployment", "run", "reproduce/reproduce-nodes", "--watch"]
        command += ["--param", f"root={head}", "--param", "jobs=2"]
        with team.head(command, head) as said:
            until(lambda: team.ran("train"), said)
            store.cut()
            api.cut()
            (team.trace / "go").touch()
            until(lambda: "send-run failed" in worker.log, said)
            store.restore()
            api.restore()
        place = f"{worker.folder / 'work' / '0-1'}:0,1"
        assert {s: team.ran(s) for s in ("prepare", "train", "table")} == {
            "prepare": [f"{head}:"],
            "train": [place],
            "table": [f"{head}:"],
        }
        assert (head / "table.md").read_text() == "1\nt\ncode\n"
        log = walk.log_path(head, "train").read_text()
        assert f"train of {clones.head(head)[:12]} on " in log
        assert "is cached - skipping run" in log
        assert "devsecret" not in worker.log + log
        assert (head / "dvc.lock").read_bytes() == serial(head, team.folder / "serial", team)


def test_a_stage_goes_to_another_node_when_its_own_is_lost(team: Team) -> None:
    """Two stages on two nodes: one node is killed with all it runs, the other one is cut off for good."""
    with Proxy(team.s3.ports[0]) as store, Proxy(team.prefect.port) as api:
        stages = {
            name: traced(name, f"cat seed.txt code.txt > model_{name}.txt", ["seed.txt", "code.txt"],
                         [f"model_{name}.txt"], "gpu", waits=True)
            for name in ("one", "two")
        }  # fmt: skip
        models = ["model_one.txt", "model_two.txt"]
        stages["both"] = traced("both", "cat model_*.txt > table.md", models, [{"table.md": {"cache": False}}])
        head = clones.repository(team.folder / "head", stages)
        team.start("gpu", "cut", AWS_ENDPOINT_URL=store.url, PREFECT_API_URL=f"{api.url}/api")
        killed = team.start("gpu", "killed")
        command = [sys.executable, "-m", "flows.reproduce", "--nodes", "--jobs", "2"]
        with team.head(command, head, UNFORGE_NODE_LOST="40") as said:
            until(lambda: team.ran("one") and team.ran("two"), said)
            on = {team.ran(name)[0].split("/")[-3]: name for name in ("one", "two")}
            assert set(on) == {"cut", "killed"}
            orphan = psutil.Process(int((team.trace / f"{on['cut']}.pid").read_text()))
            store.cut()
            api.cut()
            killed.kill()
            team.start("gpu", "other")
            logs = [walk.log_path(head, name) for name in ("one", "two")]
            until(lambda: all("attempt 1 of 2" in log.read_text() for log in logs), said)
            until(lambda: len(team.ran("one") + team.ran("two")) > 2, said)
            assert orphan.is_running()
            store.restore()
            api.restore()  # the first run of the stage learns that it was given up, and ends itself
            until(lambda: gone(orphan), said)
            (team.trace / "go").touch()
        for name in ("one", "two"):
            assert len(team.ran(name)) == 2, team.ran(name)
            log = walk.log_path(head, name).read_text()
            assert "gave no sign of life for" in log
            assert "attempt 2 of 2" not in log
        assert (head / "dvc.lock").read_bytes() == serial(head, team.folder / "serial", team)


def test_a_stage_ends_on_its_node_when_the_head_is_interrupted(team: Team) -> None:
    stages = {"train": traced("train", "cat seed.txt > model.txt", ["seed.txt"], ["model.txt"], "gpu", waits=True)}
    head = clones.repository(team.folder / "head", stages)
    worker = team.start("gpu", "node")
    interrupt, said = threading.Event(), list[str]()
    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(
            node.dispatch, head, "train", frozenset[str](), lambda _, text: said.append(text), stop=interrupt
        )
        until(lambda: team.ran("train") or status.done(), lambda: worker.log)
        stage = psutil.Process(int((team.trace / "train.pid").read_text()))
        interrupt.set()
        assert status.result(120) == 130
    until(lambda: gone(stage), lambda: worker.log)
    assert said[-1] == "interrupted"
    assert not (head / "dvc.lock").exists()


def test_what_a_user_has_to_mend_is_said(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    head = clones.repository(
        team.folder / "head",
        {"train": clones.STAGES["train"] | {"deps": ["code.txt"], "cmd": "cat code.txt > model.txt"}},
    )
    said: list[str] = []

    def dispatch() -> int:
        return node.dispatch(head, "train", frozenset(), lambda _, text: said.append(text))

    (head / "code.txt").write_text("changed\n")
    with pytest.raises(ValueError, match=r"code.txt: commit them"):
        dispatch()
    assert said[-1].startswith("error: code.txt: commit them")
    clones.commit(head)
    with monkeypatch.context() as patch:
        patch.setattr(node, "DEPLOYMENT", "node/nowhere")
        with pytest.raises(ValueError, match=r"no deployment node/nowhere: run `python -m flows.deploy`"):
            dispatch()
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(ValueError, match=r"refuses .*AWS_SECRET_ACCESS_KEY") as caught:
            dispatch()
        assert "devsecret" not in str(caught.value)
    with monkeypatch.context() as patch, Proxy(team.s3.ports[0]) as store:
        store.cut()
        patch.setenv("AWS_ENDPOINT_URL", store.url)
        patch.setenv("UNFORGE_PATIENCE", "0")
        with pytest.raises(ConnectionError, match=r"^send-inputs failed: .* \(given up after \d+ s\)$"):
            dispatch()
    with monkeypatch.context() as patch:
        patch.setattr(node, "POOL", "nobody")
        with get_client(sync_client=True) as client:
            deploy.pool(client, "nobody")
        patch.setenv("UNFORGE_NODE_WAIT", "2")
        with pytest.raises(ValueError, match="no worker of the pool nobody was online for 2 s: start one"):
            dispatch()
