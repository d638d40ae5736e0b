"""What a reproduce has to do, its command and its server's refusals: all that needs no Prefect server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
import yaml

from flows import command, server, since, walk
from tests.unit.flows.test_walk import DVC, STAGES, repository, stage

ROOT = Path(__file__).resolve().parents[3]


def git(folder: Path, *arguments: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    run = subprocess.run(["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return run.stdout.strip()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stages = {
        **STAGES,
        "scaled": {**stage("scaled.txt", [], "echo 1 > scaled.txt"), "params": ["scale"]},
        "listed": stage("listed.txt", ["parts"], "ls parts > listed.txt"),
        "private": stage("private_out.txt", ["ignored.txt"]),
    }
    folder = repository(tmp_path_factory.mktemp("original") / "one", stages)
    (folder / "params.yaml").write_text("scale: 1\nother: 1\n")
    (folder / ".gitignore").write_text("/*.txt\n!/seed.txt\n!/left_code.txt\n")
    (folder / "ignored.txt").write_text("1\n")
    (folder / "parts").mkdir()
    (folder / "parts" / "one").write_text("1\n")
    subprocess.run([*DVC, "repro", "-q"], cwd=folder, check=True)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


@pytest.fixture
def committed(original: Path, tmp_path: Path) -> Path:
    """A repository whose inputs and locks git knows, all stages fresh."""
    return Path(shutil.copytree(original, tmp_path / "one"))


def changed(folder: Path, revision: str = "HEAD") -> set[str]:
    return since.changed(folder, walk.read_graph(folder), revision)


def test_what_changed_since_a_revision(committed: Path) -> None:
    folder = committed
    assert changed(folder) == set()

    (folder / "left_code.txt").write_text("other\n")  # a dependency of two stages, and what follows
    assert changed(folder) == {"left", "alone", "a_both"}
    git(folder, "commit", "-qam", "second")
    assert changed(folder) == set()
    assert changed(folder, "HEAD~1") == {"left", "alone", "a_both"}

    (folder / "parts" / "two").write_text("2\n")  # git would add it
    assert changed(folder) == {"listed"}
    (folder / "parts" / "two").unlink()

    (folder / "params.yaml").write_text("scale: 1\nother: 2\n")  # no stage has this one
    assert changed(folder) == set()
    (folder / "params.yaml").write_text("scale: 2\nother: 1\n")
    assert changed(folder) == {"scaled"}
    (folder / "params.yaml").write_text("scale: 1\nother: 1\n")

    (folder / "ignored.txt").write_text("2\n")  # git cannot tell, the lock can
    assert changed(folder) == {"private"}
    (folder / "ignored.txt").write_text("1\n")

    pipeline = yaml.safe_load((folder / "dvc.yaml").read_text())
    pipeline["stages"]["right"]["desc"] = "only words"
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    assert changed(folder) == set()
    pipeline["stages"]["right"]["cmd"] = "cat z.txt z.txt > right.txt"
    pipeline["stages"]["new"] = stage("new.txt", ["seed.txt"])
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    assert changed(folder) == {"right", "a_both", "new"}


def test_since_is_cut_to_what_the_targets_need(committed: Path) -> None:
    folder = committed
    (folder / "left_code.txt").write_text("other\n")
    graph = walk.read_graph(folder)
    assert since.wanted(folder, graph, ["alone"], "HEAD") == ["alone"]
    assert since.wanted(folder, graph, ["right"], "HEAD") == []
    assert since.wanted(folder, graph, ["right"]) == ["right"]
    assert set(since.wanted(folder, graph)) == set(graph.upstream)


@pytest.mark.parametrize("revision", ["no-such-branch", "", "--all", "HEAD:dvc.yaml"])
def test_an_unknown_revision_is_said(committed: Path, revision: str) -> None:
    with pytest.raises(ValueError, match="git knows no revision"):
        changed(committed, revision)


def unforge(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unforge.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **environment},
        capture_output=True,
        text=True,
    )


def test_when_all_is_fresh_no_server_is_started_and_prefect_is_not_imported(committed: Path) -> None:
    folder = committed
    script = "import sys; sys.modules['prefect'] = None; from flows import command; sys.exit(command.main())"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, f"0 ran, {len(STAGES) + 3} were fresh, 0 failed, 0 not started\n")
    assert not (folder / ".unforge" / "prefect").exists()


def test_bad_input_ends_in_words_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = repository(tmp_path / "one", STAGES)
    monkeypatch.chdir(folder)
    for arguments, words in [
        (["rihgt"], "near are right"),
        (["--since", "nowhere"], "git knows no revision 'nowhere'"),
    ]:
        assert command.main(arguments) == 2
        assert words in capsys.readouterr().err
    for arguments in (["--jobs", "0"], ["--timeout", "-1"], ["--no-such-option"]):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
    with walk.alone(folder):
        assert command.main([]) == 2
    assert "another run is at work" in capsys.readouterr().err
    monkeypatch.setattr(server, "require", lambda: (_ for _ in ()).throw(ValueError("pip install unforge[flows]")))
    assert command.main([]) == 2
    assert "pip install unforge[flows]" in capsys.readouterr().err
    assert not (folder / "z.txt").exists()


def test_the_command_passes_arguments_and_status_on(tmp_path: Path) -> None:
    help_ = unforge(ROOT / "papers", "reproduce", "--help")
    assert help_.returncode == 0
    assert "--since REV" in help_.stdout
    assert unforge(ROOT, "reproduce", "--jobs", "none").returncode == 2
    assert unforge(ROOT, "share", "no-such-command").returncode == 2
    outside = unforge(tmp_path, "reproduce")
    assert outside.returncode == 2
    assert outside.stderr == f"error: no unforge project at or above {tmp_path}: change to a clone of the repository\n"
    (tmp_path / "params.yaml").touch()
    (tmp_path / "profiles").mkdir()
    assert "change to a clone" in unforge(tmp_path, "share", "status").stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_a_server_that_others_reach_needs_an_auth_string(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "")
    assert server.main(["--host", host]) == 2
    assert "PREFECT_SERVER_API_AUTH_STRING" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert all(server.loopback(h) for h in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))


def test_an_estimate_needs_known_times(tmp_path: Path) -> None:
    from flows import reproduce

    upstream = {name: frozenset[str]() for name in "abcd"} | {"e": frozenset("a")}
    graph = walk.Graph(upstream, frozenset(upstream))
    (tmp_path / ".unforge").mkdir()

    def ended(clock: reproduce.Clock, name: str, ok: bool = True, seconds: float = 60) -> str:
        clock.end(walk.Progress(name, ok, seconds, 0, 0, 0, 0))
        return clock.remaining()

    clock = reproduce.Clock(tmp_path, graph, set(upstream), jobs=2)
    assert ended(clock, "a") == ""  # nothing is known of the others
    ended(clock, "b", seconds=30)

    # the next run knows those two
    again = reproduce.Clock(tmp_path, graph, set(upstream), jobs=1)
    assert again.known == {"a": 60, "b": 30}
    assert again.remaining() == ""  # of 5 stages it knows 2
    assert ended(again, "c", seconds=30) == "; about 3 min left"  # it knows half: d and e as their mean
    assert ended(again, "d", seconds=30) == "; about 2 min left"
    again.started["b"] = time.monotonic() - 20
    assert ended(again, "a", ok=False) == "; about 10 s left"  # e will not run
    assert ended(again, "b") == ""


def test_a_run_is_alive_while_its_process_is() -> None:
    from prefect.client.schemas.objects import FlowRun, State, StateType

    from flows import reproduce

    me = psutil.Process()
    mine = f"process:{me.pid}:{me.create_time():.0f}"
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass

    def alive(state: StateType, age: float, *tags: str) -> bool:
        begun = datetime.now(UTC) - timedelta(seconds=age)
        run = FlowRun(flow_id=uuid4(), tags=list(tags), state=State(type=state, timestamp=begun))
        return reproduce._alive(run)

    assert alive(StateType.RUNNING, 9999, mine)
    assert alive(StateType.CANCELLING, 9999, "workspace:here", mine)
    assert not alive(StateType.RUNNING, 1, f"process:{ended.pid}:{time.time():.0f}")
    assert not alive(StateType.RUNNING, 1, f"process:{me.pid}:{me.create_time() - 100:.0f}")  # another with that number
    for state in (StateType.RUNNING, StateType.PENDING):  # its process is about to sign
        assert alive(state, 10)
        assert not alive(state, 600)
    assert alive(StateType.PENDING, 10, f"process:{ended.pid}:{time.time():.0f}")  # a run that is run again
