"""`python -m flows.deploy` against a real Prefect server: schedules that make runs, and an end for zombies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import deploy
from tests.services.servers import ROOT, PrefectServer, free_ports, running

pytestmark = pytest.mark.services

SLEEPER = """
import time
from prefect import flow

@flow(name="zombie")
def zombie():
    print("began", flush=True)
    time.sleep(600)

zombie()
"""


def until(what: Callable[[], Any], seconds: float = 240, why: str = "") -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, why
        time.sleep(0.5)
    return found


def ask(server: PrefectServer, path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        f"{server.api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def command(**environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "flows.deploy"], cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True
    )


def settings(server: PrefectServer) -> dict[str, Any]:
    """What a deploy sets, without the times of changes and the runs that are planned anew."""
    deployments = {
        d["name"]: {
            "id": d["id"],
            "entrypoint": d["entrypoint"],
            "pool": d["work_pool_name"],
            "parameters": d["parameters"],
            "variables": d["job_variables"],
            "pull": d["pull_steps"],
            "schedules": [(s["id"], s["active"], s["schedule"]) for s in d["schedules"]],
        }
        for d in ask(server, "deployments/filter")
    }
    pools = {p["name"]: (p["id"], p["type"], p["concurrency_limit"]) for p in ask(server, "work_pools/filter")}
    automations = {
        a["id"]: (a["name"], a["enabled"], a["trigger"]["within"]) for a in ask(server, "automations/filter")
    }
    return {"deployments": deployments, "pools": pools, "automations": automations}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A server of its own, deployed to once."""
    with running(PrefectServer(tmp_path_factory.mktemp("prefect"))) as started:
        run = command(**started.environment)
        assert run.returncode == 0, run.stderr
        assert "UNFORGE_HOME=$PWD prefect worker start --pool gpu --type process --limit 1" in run.stdout
        yield started


@pytest.fixture(scope="module", autouse=True)
def zombie(server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A flow run that was killed after its first sign of life; its id. It ages while the other tests run."""
    script = tmp_path_factory.mktemp("zombie") / "sleeper.py"
    script.write_text(SLEEPER)
    environment = {**os.environ, **server.environment, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    with subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"began\n"
            seen = until(
                lambda: ask(server, "events/filter", filter={"event": {"name": ["prefect.flow-run.heartbeat"]}})[
                    "events"
                ]
            )
        finally:
            process.kill()
    return str(seen[0]["resource"]["prefect.resource.id"]).removeprefix("prefect.flow-run.")


def test_schedules_make_runs(server: PrefectServer) -> None:
    """Too new a version of two libraries breaks just this, and nothing says so."""
    found = settings(server)["deployments"]
    assert set(found) == {"reproduce", "reproduce-nodes", "gpu", "publish", "watch"}
    for name in ("reproduce", "watch"):
        planned = until(
            lambda name=name: ask(
                server,
                "flow_runs/filter",
                flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}, "deployment_id": {"any_": [found[name]["id"]]}},
            ),
            why=(server.folder / "server.log").read_text()[-3000:],
        )
        assert all(run["auto_scheduled"] for run in planned)
        assert all(run["work_pool_name"] == "cpu" for run in planned)
    [(_, active, schedule)] = found["reproduce"]["schedules"]
    assert (active, schedule["cron"]) == (True, "0 2 * * *")
    assert found["reproduce-nodes"]["parameters"] == {"jobs": 2, "nodes": True}
    for entry in found.values():
        assert entry["pull"] == [
            {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $UNFORGE_HOME }}"}}
        ], "the path is that of the worker, not of who deployed"


def test_deploying_again_changes_nothing(server: PrefectServer) -> None:
    [gpu] = [p for p in ask(server, "work_pools/filter") if p["name"] == "gpu"]
    change = urllib.request.Request(
        f"{server.api}/work_pools/{gpu['name']}", b'{"concurrency_limit": 7}', {"Content-Type": "application/json"},
        method="PATCH",
    )  # fmt: skip
    urllib.request.urlopen(change, timeout=30).close()
    before = settings(server)
    assert before["pools"]["gpu"][2] == 7
    assert [name for name, *_ in before["automations"].values()] == [deploy.ZOMBIES]
    run = command(**server.environment)
    assert run.returncode == 0, run.stderr
    assert settings(server) == before
    assert run.stdout.splitlines()[:2] == ["work pool cpu is there (process)", "work pool gpu is there (process)"]
    assert "automation is there" in run.stdout


def test_no_server_is_said_in_words(tmp_path: Path) -> None:
    run = command(PREFECT_HOME=str(tmp_path))
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: no Prefect server: start one (`python -m flows.server`)")
    url = f"http://127.0.0.1:{free_ports(1)[0]}/api"
    run = command(PREFECT_HOME=str(tmp_path), PREFECT_API_URL=url)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"error: no Prefect server answers at {url}")


def test_a_zombie_becomes_crashed(server: PrefectServer, zombie: str) -> None:
    def state() -> Any:
        with urllib.request.urlopen(f"{server.api}/flow_runs/{zombie}", timeout=30) as answer:
            return json.load(answer)["state"]

    found = until(lambda: (now := state())["type"] != "RUNNING" and now, why="the automation has not fired")
    assert (found["type"], found["message"]) == ("CRASHED", "no sign of life for 90 s")
