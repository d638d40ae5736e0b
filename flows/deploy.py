"""Set up a Prefect server for the flows: work pools, the deployments of `prefect.yaml`, an end for zombie runs.

    PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.deploy

Done again it changes nothing. Pools that exist are kept as they are.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

HOME = Path(__file__).resolve().parents[1]
POOLS = ("cpu", "gpu")
ZOMBIES = "unforge: end runs that are silent"
SILENT = timedelta(seconds=90)
"""Three heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY in prefect.yaml)."""
ENDED = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut", "Paused", "Suspended", "AwaitingRetry")


def automation(silent: timedelta = SILENT) -> AutomationCore:
    """After a heartbeat of a flow run neither another one nor its end within `silent`: the run is set to Crashed.

    A run that dies before its first heartbeat is not seen: `flows.reproduce` and `flows.node` find those.
    """
    heartbeat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=ZOMBIES,
        description="A flow run whose machine died stays Running for ever otherwise.",
        enabled=True,
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{state}" for state in ENDED)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silent,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                force=False,
                message=f"no sign of life for {silent.total_seconds():.0f} s",
            )
        ],
    )


def apply(root: Path = HOME) -> list[str]:
    """Set up the server at PREFECT_API_URL; what was done. ValueError when there is none or it refuses."""
    url = PREFECT_API_URL.value()
    if not url:
        raise ValueError(
            "no Prefect server: start one (`python -m flows.server`) and set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    done: list[str] = []
    try:
        with get_client(sync_client=True) as client:
            client.hello().raise_for_status()
            done += [pool(client, name) for name in POOLS]
            prefect(root, "deploy", "--all", "--prefect-file", str(root / "prefect.yaml"))
            done.append("deployments of prefect.yaml applied")
            done.append(_end_zombies(client))
    except httpx.HTTPStatusError as error:
        raise ValueError(f"{url} refuses ({error.response.status_code}): look at PREFECT_API_AUTH_STRING") from None
    except httpx.HTTPError as error:
        raise ValueError(f"no Prefect server answers at {url}: {error}") from None
    return done


def pool(client: SyncPrefectClient, name: str) -> str:
    """Make a process pool unless there is one of that name; what was done."""
    try:
        return f"work pool {name} is there ({client.read_work_pool(name).type})"
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        return f"work pool {name} made (process)"


def _end_zombies(client: SyncPrefectClient) -> str:
    wanted = automation()
    there = client.read_automations_by_name(ZOMBIES)
    if not there:
        client.create_automation(wanted)
        return "automation made: silent runs become Crashed"
    for one in there[1:]:
        client.delete_automation(one.id)
    if any(getattr(there[0], name) != getattr(wanted, name) for name in ("trigger", "actions", "description")):
        wanted.enabled = there[0].enabled
        client.update_automation(there[0].id, wanted)
        return "automation brought up to date: silent runs become Crashed"
    return "automation is there: silent runs become Crashed"


def prefect(root: Path, *arguments: str) -> None:
    """The `prefect` command, with the flows of `root` importable. ValueError with its words when it fails."""
    path = os.pathsep.join(p for p in (str(root), os.environ.get("PYTHONPATH", "")) if p)
    run = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    if run.returncode != 0:
        words = "\n".join((run.stdout + run.stderr).strip().splitlines()[-12:])
        raise ValueError(f"prefect {' '.join(arguments)} failed:\n{words}")


WORKERS = """
Start workers, each in a clone of the repository, with PREFECT_API_URL and the variables of the S3 store set:

  UNFORGE_HOME=$PWD prefect worker start --pool cpu --type process --limit 1

and on a GPU node, one for the whole node (a stage then uses all devices through torchrun):

  UNFORGE_HOME=$PWD prefect worker start --pool gpu --type process --limit 1

or one for each device:

  CUDA_VISIBLE_DEVICES=0 UNFORGE_HOME=$PWD prefect worker start --pool gpu --type process --limit 1

Then:  prefect deployment run reproduce/reproduce-nodes"""


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m flows.deploy", description=__doc__.split("\n\n")[0]).parse_args(arguments)
    try:
        for line in apply():
            print(line, flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(WORKERS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
