"""What fails while stages run, with real processes, disks and servers: whatever it was, the next run finishes.

A small DVC repository, of which a second copy was reproduced by `dvc repro` alone: outputs and locks are those of
the copy, byte for byte, after each fault and the run that follows it.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from dvc.utils.serialize import dump_yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import locks, walk
from tests.services.servers import BIN, ROOT, PrefectServer, running, stop
from tests.unit.flows.test_walk import DVC, stage

pytestmark = pytest.mark.services

DEADLINE = 240.0
KILLED = signal.SIGKILL
TABLE, REPORT = "papers/toy/dvc.yaml:table", "papers/toy/dvc.yaml:report"
LOCKS = ("dvc.lock", "papers/toy/dvc.lock")
OUTPUTS = ("source.txt", "slow.txt", "after.txt", "left.txt", "papers/toy/table.csv", "papers/toy/report.txt")

# While the file `fault` is there, the stage `slow` stops half-way and says so in `held`, with its processes. It may
# also say what goes wrong: "deaf" processes ignore SIGTERM; a "full" disk is a device that has no space.
SLOW = """import json, os, signal, subprocess, time
from pathlib import Path

text, fault = Path("seed_of_slow.txt").read_text() + Path("source.txt").read_text(), Path("fault")
with open("slow.txt", "w") as out:
    out.write(20000 * text)
    out.flush()
    if fault.exists():
        how = fault.read_text()
        if how == "full":
            Path("/dev/full").write_text(text)
        if how == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the child too
        child = subprocess.Popen(["sleep", "600"])
        Path("held.new").write_text(json.dumps([os.getpid(), child.pid]))
        os.replace("held.new", "held")
        end = time.monotonic() + 600
        while fault.exists() and time.monotonic() < end:
            time.sleep(0.05)
        child.kill()
    out.write(20000 * text)
"""
MAKE_TABLE = """import hashlib
from pathlib import Path

rows = [f"{p},{hashlib.sha256(Path('../..', p).read_bytes()).hexdigest()}" for p in ("left.txt", "source.txt")]
Path("table.csv").write_text("\\n".join(["file,hash", *rows]) + "\\n")
"""
STAGES = {
    "source": stage("source.txt", ["seed.txt"]),
    "slow": stage("slow.txt", ["slow.py", "seed_of_slow.txt", "source.txt"], "python slow.py"),
    "after": stage("after.txt", ["slow.txt"], "cksum slow.txt > after.txt"),
    "left": stage("left.txt", ["seed_of_left.txt", "source.txt"]),
}
PAPER = {
    "table": stage("table.csv", ["table.py", "../../left.txt", "../../source.txt"], "python table.py"),
    "report": stage("report.txt", ["table.csv", "../../after.txt"]),
}
FILES = {
    "seed.txt": "1\n",
    "seed_of_slow.txt": "2\n",
    "seed_of_left.txt": "3\n",
    "slow.py": SLOW,
    "papers/toy/table.py": MAKE_TABLE,
    "dvc.yaml": yaml.safe_dump({"stages": STAGES}),
    "papers/toy/dvc.yaml": yaml.safe_dump({"stages": PAPER}),
    ".gitignore": "/.unforge/\n/flows\n/fault\n/held\n",
}


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (*LOCKS, *OUTPUTS)}


def entries(lock: bytes) -> dict[str, Any]:
    """Stages of a dvc.lock."""
    return dict(yaml.safe_load(lock)["stages"])


@dataclass
class Toy:
    """A workspace in which all but `source` is stale."""

    folder: Path
    environment: dict[str, str]
    before: dict[str, bytes]
    """Locks and outputs when it was new."""
    serial: dict[str, bytes]
    """What `dvc repro` alone makes of it."""
    logs: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """A process in the workspace."""

        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it

        with open(self.logs / f"{len(self.processes)}.log", "wb") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env={**self.environment, **environment}, preexec_fn=prepare,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def said(self, process: subprocess.Popen[bytes]) -> str:
        return (self.logs / f"{self.processes.index(process)}.log").read_text()

    def until(self, what: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> Any:
        """What `what` gives once that is true. Fails when `process` ends before, or in the end."""
        deadline = time.monotonic() + DEADLINE
        while not (found := what()):
            assert process is None or process.poll() is None, self.said(process)
            assert time.monotonic() < deadline, "\n".join(map(self.said, self.processes))
            time.sleep(0.05)
        return found

    def ended(self, process: subprocess.Popen[bytes], status: int) -> str:
        """What a process printed, once it has ended with that status."""
        assert process.wait(DEADLINE) == status, self.said(process)
        return self.said(process)

    def reproduce(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        return self.start(sys.executable, "-m", "flows.reproduce", *arguments, **environment)

    def break_(self, how: str = "") -> None:
        """Let the next run of `slow` stop half-way."""
        (self.folder / "held").unlink(missing_ok=True)
        (self.folder / "fault").write_text(how)

    def mend(self) -> None:
        (self.folder / "fault").unlink()

    def held(self, process: subprocess.Popen[bytes] | None = None) -> list[int]:
        """The processes of `slow`, once it has stopped half-way."""
        self.until((self.folder / "held").exists, process)
        found = json.loads((self.folder / "held").read_text())
        assert all(map(alive, found))
        return list(found)

    def group(self, name: str = "slow") -> int:
        """The process of DVC that runs a stage: the leader of its group."""
        return int(json.loads((self.folder / walk.RUNNING / f"{name}.json").read_text())["group"])

    def records(self) -> list[Path]:
        """Files that say which stages run."""
        return list((self.folder / walk.RUNNING).glob("*.json"))

    def here(self) -> list[str]:
        """Commands of the processes that work here."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if Path(process.cwd()).is_relative_to(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
        return found

    def check_unfinished(self, *finished: str) -> None:
        """`slow` does not look finished, and the locks are whole: `finished` is in them, the rest is as before."""
        self.check_locks(*finished)
        with walk.alone(self.folder):
            assert "slow" in walk.read_graph(self.folder).stale

    def check_locks(self, *finished: str) -> None:
        done = set()
        for name in LOCKS:
            now, old, new = (entries(lock) for lock in (self.now(name), self.before[name], self.serial[name]))
            assert list(now) == sorted(old)
            assert all(now[stage] in (old[stage], new[stage]) for stage in now)
            done |= {stage for stage in now if now[stage] == new[stage] != old[stage]}
        assert "slow" not in done
        assert done >= {name.split(":")[-1] for name in finished}

    def now(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def check_finished(self) -> None:
        """All is as `dvc repro` makes it, and nothing is left running."""
        assert content(self.folder) == self.serial
        assert walk.read_graph(self.folder).stale == frozenset()
        assert self.here() == []
        assert self.records() == []

    def finish(self) -> str:
        """Run what is left; what that printed."""
        text = self.ended(self.reproduce(), 0)
        self.check_finished()
        return text

    def end(self) -> None:
        """End what a failed test left here."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for one in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if Path(one.cwd()).is_relative_to(self.folder):
                    one.kill()


def repro(folder: Path, environment: dict[str, str]) -> dict[str, bytes]:
    """`dvc repro` of everything; locks in canonical form, and outputs."""
    subprocess.run([*DVC, "repro", "-q", "-P"], cwd=folder, env=environment, check=True)
    locks.canonical(folder)
    return content(folder)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Without a Prefect server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    home = tmp_path_factory.mktemp("home")
    return {
        **kept,
        "HOME": str(home),
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> tuple[Path, dict[str, bytes], dict[str, bytes]]:
    """The workspace to copy, what it holds, and what a serial run makes of a copy."""
    folder = tmp_path_factory.mktemp("made") / "toy"
    (folder / "papers/toy").mkdir(parents=True)
    for command in (["git", "init", "-q"], [*DVC, "init", "-q"]):
        subprocess.run(command, cwd=folder, env=environment, check=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    with open(folder / ".dvcignore", "a") as file:
        file.write("/flows\n")
    (folder / "flows").symlink_to(ROOT / "flows")  # the clone of a worker has the code
    repro(folder, environment)
    (folder / "seed_of_slow.txt").write_text("22\n")
    (folder / "seed_of_left.txt").write_text("33\n")
    copy = folder.with_name("serial")
    shutil.copytree(folder, copy, symlinks=True)
    return folder, content(folder), repro(copy, environment)


Make = Callable[..., Toy]


@pytest.fixture
def make(
    made: tuple[Path, dict[str, bytes], dict[str, bytes]], environment: dict[str, str], tmp_path: Path
) -> Iterator[Make]:
    """Makes workspaces; `folder` says where, `server` which Prefect server they use (default: one of the run's own)."""
    folder, before, serial = made
    toys: list[Toy] = []

    def copy(to: Path = tmp_path / "toy", server: PrefectServer | None = None) -> Toy:
        shutil.copytree(folder, to, symlinks=True)
        logs = tmp_path / f"logs{len(toys)}"
        logs.mkdir()
        settings = {**environment, **(server.environment if server else {})}
        toys.append(Toy(to, settings, dict(before), dict(serial), logs))
        return toys[-1]

    yield copy
    for toy in toys:
        toy.end()


def copy_database(server: PrefectServer, folder: Path) -> Path:
    """A server's database for another one in `folder`, for which making one would take 10 s."""
    folder.mkdir(parents=True, exist_ok=True)
    source, target = (sqlite3.connect(one / "prefect.db") for one in (server.folder, folder))
    with closing(source), closing(target):
        source.backup(target)
    return folder


@pytest.fixture
def toy(make: Make, prefect_server: PrefectServer) -> Toy:
    return make(server=prefect_server)


def test_a_stage_that_is_killed_stops_its_dependants_only(toy: Toy) -> None:
    victims = {"DVC": "FAILED slow: exit status -9", "the command": "exited with -9"}
    for (victim, words), count in zip(victims.items(), ("2 ran, 1 were", "0 ran, 3 were"), strict=True):
        toy.break_()
        process = toy.reproduce()
        held = toy.held(process)
        os.kill(toy.group() if victim == "DVC" else held[0], KILLED)
        text = toy.ended(process, 1)
        assert f"{count} fresh, 1 failed, 2 not started" in text
        assert words in text
        assert "not started after: it needs slow" in text
        assert f"not started {REPORT}: it needs slow" in text
        assert not any(map(alive, held))
        toy.check_unfinished("left", "table")
    toy.mend()
    assert "3 ran, 3 were fresh" in toy.finish()


def test_a_kill_while_dvc_writes_a_lock_costs_no_stage(toy: Toy) -> None:
    """A long lock takes DVC seconds to write. It is as before or as after, whenever that ends."""
    name, folder = LOCKS[1], toy.folder / "papers/toy"
    gone = {f"old_{i:03}": entry for i in range(200) for entry in [entries(toy.before[name])["table"]]}
    for state in (toy.before, toy.serial):
        stages = dict(sorted({**gone, **entries(state[name])}.items()))
        dump_yaml(str(folder / "dvc.lock"), {"schema": "2.0", "stages": stages})
        state[name] = (folder / "dvc.lock").read_bytes()
    (folder / "dvc.lock").write_bytes(toy.before[name])
    size, files = len(toy.before[name]), set(os.listdir(folder))

    process = toy.reproduce("toy.table")
    deadline = time.monotonic() + DEADLINE
    while (folder / "dvc.lock").stat().st_size >= size and not set(os.listdir(folder)) - files:
        assert process.poll() is None, f"the write was not seen: {toy.said(process)}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(toy.group("papers~toy~dvc.yaml~table"), KILLED)
    text = toy.ended(process, 1)
    assert f"FAILED {TABLE}: exit status -9" in text
    toy.check_unfinished("left")
    toy.finish()


@pytest.fixture
def zombies() -> Iterator[None]:
    """Orphans become children of this process, which waits for none: as in a container without an init."""
    become_subreaper = partial(ctypes.CDLL(None, use_errno=True).prctl, 36)
    ours = {child.pid for child in psutil.Process().children()}
    assert become_subreaper(1) == 0
    yield
    become_subreaper(0)
    for child in psutil.Process().children():
        if child.pid not in ours and child.status() == psutil.STATUS_ZOMBIE:
            os.waitpid(child.pid, 0)


def test_a_killed_run_leaves_nothing_that_the_next_one_does_not_end(
    make: Make, prefect_server: PrefectServer, zombies: None
) -> None:
    toy = make()  # the run has a server of its own
    copy_database(prefect_server, toy.folder / ".unforge/prefect")
    toy.break_()
    process = toy.reproduce()
    held = toy.held(process)
    servers = [p for p in psutil.Process(process.pid).children() if "flows.server" in p.cmdline()]
    assert len(servers) == 1
    process.kill()
    toy.ended(process, -KILLED)
    toy.until(lambda: not alive(servers[0].pid))
    assert all(map(alive, held))
    group = toy.group()
    toy.check_locks()

    toy.break_()  # the stage that was left cannot come to its end meanwhile
    again = toy.reproduce(**prefect_server.environment)
    assert not set(toy.held(again)) & set(held)
    assert not any(map(alive, held))
    assert psutil.Process(group).status() == psutil.STATUS_ZOMBIE  # for which DVC would wait
    toy.mend()
    text = toy.ended(again, 0)
    assert "ended slow, which a killed run had left running" in text
    toy.check_finished()


@contextmanager
def small_disk(folder: Path, size: str = "8m") -> Iterator[bool]:
    """A disk at `folder`; whether that is permitted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """No space is left on a disk, as when somebody else takes each block that is freed."""
    stop, filled = threading.Event(), threading.Event()

    def take() -> None:
        with open(folder / "taken", "wb", buffering=0) as file:
            while not stop.is_set():
                try:
                    file.write(bytes(4096))
                except OSError:
                    filled.set()
                    time.sleep(0.0002)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        assert filled.wait(DEADLINE)
        yield
    finally:
        stop.set()
        thread.join()
        (folder / "taken").unlink()


def test_a_full_disk_is_said_and_once_there_is_space_the_run_finishes(
    make: Make, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as mounted:
        toy = make(tmp_path / "disk" / "toy", prefect_server)
        toy.break_("" if mounted else "full")
        process = toy.reproduce()
        if mounted:
            toy.held(process)
            with full(tmp_path / "disk"):
                toy.mend()
                text = toy.ended(process, 1)
        else:
            warnings.warn("no disk may be mounted here: /dev/full stands in for it, for one stage", stacklevel=1)
            text = toy.ended(process, 1)
            toy.mend()
        assert "FAILED slow: " in text
        assert "No space left on device" in text
        assert "not started after: it needs slow" in text
        toy.check_unfinished()
        toy.finish()
        toy.end()


def test_a_disk_without_space_for_a_server_is_said(make: Make, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as mounted:
        if not mounted:
            pytest.skip("no disk may be mounted here")
        toy = make(tmp_path / "disk" / "toy")
        assert "No space left" in toy.ended(toy.reproduce(), 2)
        toy.end()


def test_a_second_run_beside_one_is_refused_and_harms_nothing(toy: Toy) -> None:
    toy.break_()
    first = toy.reproduce()
    held = toy.held(first)
    text = toy.ended(toy.reproduce(), 2)
    assert f"error: another run is at work in {toy.folder} (process {first.pid}," in text
    assert all(map(alive, held))
    toy.mend()
    assert "5 ran, 1 were fresh" in toy.ended(first, 0)
    toy.check_finished()


def test_a_stage_that_hangs_is_ended_with_all_its_processes(toy: Toy) -> None:
    toy.break_("deaf")
    process = toy.reproduce("slow", "--timeout", "7")
    held = toy.held(process)
    text = toy.ended(process, 1)
    assert "FAILED slow: ended, it took too long" in text
    assert not any(map(alive, held))
    assert toy.here() == []
    toy.check_unfinished()
    toy.mend()
    toy.finish()


def test_a_signal_ends_the_stages_and_keeps_what_is_finished(toy: Toy) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        toy.break_()
        process = toy.reproduce()
        held = toy.held(process)
        process.send_signal(number)
        text = toy.ended(process, 130)
        assert "interrupted: finished stages are kept" in text
        assert not any(map(alive, held))
        assert toy.here() == []
        toy.check_unfinished()
    toy.mend()
    toy.finish()


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, prefect_server: PrefectServer) -> Iterator[PrefectServer]:
    """A server to kill, with a deployment as in prefect.yaml but for its schedule."""
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": "{{ $UNFORGE_HOME }}"}}]
    with running(PrefectServer(copy_database(prefect_server, tmp_path_factory.mktemp("prefect")))) as started:
        with client(started) as api:
            api.create_work_pool(WorkPoolCreate(name="cpu", type="process"))
            api.create_deployment(
                api.create_flow_from_name("reproduce"), "reproduce", entrypoint="flows/reproduce.py:reproduce",
                work_pool_name="cpu", pull_steps=pull, path="", parameters={"jobs": 2},
            )  # fmt: skip
        yield started


@pytest.fixture
def server(deployed: PrefectServer) -> PrefectServer:
    if deployed.process is None or deployed.process.poll() is not None:  # a test failed before it started it again
        deployed.start()
    return deployed


@contextmanager
def client(server: PrefectServer) -> Iterator[Any]:
    with temporary_settings({PREFECT_API_URL: server.api}), get_client(sync_client=True) as found:
        yield found


def worker(toy: Toy) -> subprocess.Popen[bytes]:
    """A machine of the pool `cpu`, whose clone is the workspace.

    Its runs ask a server that is away for eight minutes: the default is one, and a slow machine needs that to start it.
    """
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "cpu", "--type", "process", "--limit", "1"]
    settings = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_CLIENT_MAX_RETRIES": "8"}
    return toy.start(*command, UNFORGE_HOME=str(toy.folder), **settings)


def ask(server: PrefectServer) -> Any:
    """Ask for a run of the deployment; its id."""
    with client(server) as api:
        deployment = api.read_deployment_by_name("reproduce/reproduce")
        return api.create_flow_run_from_deployment(deployment.id).id


def runs(api: Any, toy: Toy) -> list[FlowRun]:
    """The runs of a workspace, oldest first."""
    tag = f"workspace:{socket.gethostname()}:{toy.folder}"
    found = api.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate({"tags": {"all_": [tag]}}))
    return sorted(found, key=lambda run: run.created)


def states(server: PrefectServer, toy: Toy) -> list[tuple[str, str | None]]:
    """State and message of the runs of a workspace, oldest first."""
    with client(server) as api:
        return [(run.state.name, run.state.message) for run in runs(api, toy)]


def machine(toy: Toy, server: PrefectServer) -> tuple[subprocess.Popen[bytes], psutil.Process, list[int]]:
    """A worker, the flow run that it started, and the processes of `slow`, which has stopped half-way."""
    toy.break_()
    one = worker(toy)
    ask(server)
    held = toy.held(one)
    with client(server) as api:
        (tag,) = [t for t in runs(api, toy)[-1].tags if t.startswith("process:")]
    flow = psutil.Process(int(tag.split(":")[1]))
    assert flow.ppid() == one.pid
    return one, flow, held


def unharmed(toy: Toy) -> bool:
    """Whether all is as `dvc repro` makes it and nothing but a worker is at work."""
    with suppress(FileNotFoundError):
        return content(toy.folder) == toy.serial and not [c for c in toy.here() if "worker start" not in c]
    return False


def test_a_run_goes_on_without_its_worker(make: Make, server: PrefectServer) -> None:
    toy = make(server=server)
    one, flow, held = machine(toy, server)
    one.kill()
    toy.ended(one, -KILLED)
    assert flow.is_running()
    assert all(map(alive, held))
    toy.mend()
    toy.until(lambda: states(server, toy) == [("Completed", None)])
    toy.until(lambda: unharmed(toy))
    assert "0 ran, 6 were fresh" in toy.finish()


def test_a_run_goes_on_without_the_server(make: Make, server: PrefectServer) -> None:
    toy = make(server=server)
    one, _, _ = machine(toy, server)
    server.kill()
    toy.mend()
    made = toy.folder / OUTPUTS[-1]
    toy.until(lambda: made.is_file() and made.read_bytes() == toy.serial[OUTPUTS[-1]] and not toy.records(), one)
    server.start()
    toy.until(lambda: states(server, toy) == [("Completed", None)], one)
    toy.until(lambda: unharmed(toy), one)
    ask(server)  # of the same worker
    toy.until(lambda: states(server, toy) == [("Completed", None)] * 2, one)
    stop(one)
    toy.check_finished()


def test_a_machine_that_is_lost_with_the_server_is_not_in_the_way(make: Make, server: PrefectServer) -> None:
    toy = make(server=server)
    one, flow, held = machine(toy, server)
    for process in (one, flow):
        process.kill()
    server.kill()
    toy.ended(one, -KILLED)
    toy.until(lambda: not alive(flow.pid))
    assert all(map(alive, held))
    toy.check_locks()
    server.start()
    assert states(server, toy) == [("Running", None)]

    two, _, others = machine(toy, server)
    assert not any(map(alive, held))
    assert states(server, toy) == [("Crashed", "its process is gone"), ("Running", None)]
    assert all(map(alive, others))
    toy.mend()
    toy.until(lambda: states(server, toy)[1:] == [("Completed", None)], two)
    stop(two)
    toy.check_finished()
