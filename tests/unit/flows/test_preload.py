"""Forked stages against stages in processes of their own, on small real repositories."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows import preload, runner, walk
from tests.unit.flows.test_walk import repository

pytestmark = pytest.mark.skipif(not preload.possible(), reason="stages are forked on Linux without an accelerator")

ROOT = Path(__file__).resolve().parents[3]
DUMP = """
import builtins, json, locale, os, signal, subprocess, sys, threading, warnings
main = sys.modules["__main__"]
found = {
    "argv": sys.argv, "cwd": os.getcwd(), "environment": dict(os.environ), "path": sys.path, "flags": list(sys.flags),
    "executable": sys.executable, "prefix": [sys.prefix, sys.base_prefix], "file": __file__, "name": __name__,
    "main": sorted(vars(main)), "same": vars(main) is globals(), "loader": isinstance(__loader__, object),
    "spec": [__spec__, __package__, __doc__, __cached__], "builtins": __builtins__ is builtins,
    "streams": [[type(s).__name__, s.encoding, s.errors, s.line_buffering, s.fileno(), s.isatty()]
                for s in (sys.stdin, sys.stdout, sys.stderr)],
    "stdin": sys.stdin.read(), "signals": [str(signal.getsignal(n)) for n in (1, 2, 13, 15, 17)],
    "masked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "files": [n for n in range(20) if os.path.exists(f"/proc/self/fd/{n}")
              and not os.readlink(f"/proc/self/fd/{n}").startswith("/memfd:modules")],
    "umask": os.umask(0o22), "threads": threading.active_count(), "locale": locale.setlocale(locale.LC_ALL),
    "hooks": [sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__],
    "limit": sys.getrecursionlimit(), "gc": __import__("gc").get_threshold(), "warnoptions": sys.warnoptions,
    "alone": os.getsid(0) != os.getpid() and os.getpgid(0) == os.getsid(0),
}
with open(sys.argv[1], "w") as out:
    json.dump(found, out, indent=1, sort_keys=True)
open("how_" + sys.argv[1], "w").write(open("/proc/self/cmdline").read())
print("first line, kept back")
print("an error line", file=sys.stderr)
os.write(1, b"at once\\n")
sys.stdout.flush()
subprocess.run("echo from a child; echo its error >&2", shell=True)
import atexit
atexit.register(print, "at exit")
threading.Thread(target=lambda: (__import__("time").sleep(0.2), print("from a thread"))).start()
print("last, not flushed", end="")
left_open = open("left_" + sys.argv[1], "w")
left_open.write("not closed")
"""
CHILDREN = """
import multiprocessing, os, subprocess, sys
def square(x):
    return x * x
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(square, range(4)))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(square, range(4)))
    print(subprocess.run([sys.executable, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True))
    open(sys.argv[1], "w").write("1")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-c", "print('another program')"])
"""
FAILURES = {
    "raises": "def inner():\n    raise ValueError('no such thing')\ntry:\n    inner()\nexcept ValueError as e:\n"
    "    raise KeyError('later') from e\n",
    "exits": "import sys\nprint('before')\nsys.exit('a text: é')\n",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "syntax": "print(1\n",
}


def python(script: str, out: str, *deps: str, words: str = "") -> dict[str, Any]:
    return {"cmd": f"python stages/{script}.py {out}{words}", "deps": [f"stages/{script}.py", *deps], "outs": [out]}


def project(folder: Path, stages: dict[str, Any], scripts: dict[str, str]) -> Path:
    repository(folder, stages)
    (folder / "stages").mkdir()
    for name, text in scripts.items():
        (folder / "stages" / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def walked(folder: Path, forks: bool) -> tuple[walk.Result, runner.Runner]:
    one = runner.Runner(folder)
    one.forks = forks
    try:
        return walk.walk(folder, jobs=1, run=one, report=lambda _: None), one
    finally:
        one.close()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Path]:
    """A repository with a stage that sleeps, with a child; `pids` has both when they are there."""
    text = (
        "import json, os, subprocess\nchild = subprocess.Popen(['sleep', '120'])\n"
        "open('new', 'w').write(json.dumps([os.getpid(), child.pid, os.getpgid(0)]))\nos.replace('new', 'pids')\n"
        "child.wait()\n"
    )
    yield project(tmp_path / "one", {"slow": python("slow", "o.txt")}, {"slow": text})
    assert here(tmp_path) == []


def here(folder: Path) -> list[str]:
    """Commands of the processes that work in a folder, once those that end have ended."""
    for _ in range(100):
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except (psutil.Error, OSError):
                continue
        if not found:
            return []
        time.sleep(0.05)
    return found


def begun(folder: Path, status: Any) -> list[int]:
    while not (folder / "pids").exists():
        assert status.poll() is None if isinstance(status, subprocess.Popen) else not status.done()
        time.sleep(0.05)
    return list(json.loads((folder / "pids").read_text()))


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_fork_is_as_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    if not Path(shell).exists():
        pytest.skip(f"no {shell}")
    monkeypatch.setenv("SHELL", shell)
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # DVC names the files that it changed in the order of a set
    stages = {
        "a_dump": python("dump", "a.json", words=" --asset run=models/x~y"),
        "b_dump": python("dump", "b.json", "a.json"),
        "c_children": python("children", "c.txt", "b.json"),
        "d_shell": {"cmd": "python stages/dump.py d.json > said.txt", "deps": ["c.txt"], "outs": ["d.json"]},
        **{name: python(name, f"{name}.txt", "c.txt") for name in FAILURES},
    }
    if shell != "/bin/sh":
        stages = {"a_dump": stages["a_dump"], "killed": python("killed", "killed.txt", "a.json")}
    results = []
    for forks in (True, False):
        folder = project(tmp_path / "one", stages, {"dump": DUMP, "children": CHILDREN, **FAILURES})
        result, one = walked(folder, forks)
        assert set(result.ran) == set(stages) - set(FAILURES)
        how = {path.stem: "preload.py" in path.read_text() for path in folder.glob("how_*.json")}
        assert how == {
            f"how_{name[0]}": forks and name != "d_shell" for name in stages if name[1:] in ("_dump", "_shell")
        }
        assert one.forks == forks
        names = ["a.json", "b.json", "d.json", "c.txt", "left_a.json", ".unforge/logs/*.log", "dvc.lock"]
        files = {p.relative_to(folder): p.read_bytes() for name in names for p in sorted(folder.glob(name))}
        results.append((files, result.failed, result.skipped))
        shutil.rmtree(folder)
    forked, plain = results
    for name in plain[0]:
        if name.suffix == ".json" and not name.name.startswith("left"):
            assert json.loads(forked[0][name]) == json.loads(plain[0][name]), name
        assert forked[0][name].decode() == plain[0][name].decode(), name
    assert forked == plain
    assert set(plain[1]) == set(FAILURES) & set(stages)
    logs = {name.stem: text.decode() for name, text in forked[0].items() if name.suffix == ".log"}
    assert all(words in logs["a_dump"] for words in ("at exit", "from a thread", "last, not flushed", "its error"))
    assert "preload.py" not in "".join(logs.values())
    if shell != "/bin/sh":
        return
    assert re.search(r"Traceback.*line 2, in inner.*The above exc.*KeyError: 'later'", logs["raises"], re.DOTALL)
    assert "\na text: é\n" in logs["exits"]


def test_each_fork_has_the_code_of_its_moment_and_the_libraries_of_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "import json, random, sys\nloaded = 'numpy' in sys.modules\nimport numpy\nimport part\n"
        "values = [random.random(), float(numpy.random.random())]\n"
        "json.dump([loaded, part.WORD, 'word', values], open(sys.argv[1], 'w'))\n"
    )
    edit = (
        "from pathlib import Path\nPath('lib/part.py').write_text('WORD = \"second\"\\n')\n"
        "Path('stages/b.py').write_text(Path('stages/b.py').read_text().replace('word', 'WORD'))\n"
        "Path('edit.txt').write_text('1')\n"
    )
    stages = {"a": python("a", "a.json"), "edit": python("edit", "edit.txt", "a.json")}
    stages["b"] = {**python("b", "b.json"), "deps": ["edit.txt"]}
    folder = project(tmp_path / "one", stages, {"a": text, "b": text, "edit": edit})
    (folder / "lib").mkdir()
    (folder / "lib" / "part.py").write_text("WORD = 'first'\n")
    monkeypatch.setenv("PYTHONPATH", f"{folder}/lib")
    result, one = walked(folder, forks=True)
    assert not result.failed
    a, b = (json.loads((folder / name).read_text()) for name in ("a.json", "b.json"))
    assert a[:3] == [False, "first", "word"]
    assert b[:3] == [True, "second", "WORD"]
    assert a[3][0] != b[3][0]
    assert a[3][1] != b[3][1]
    assert one.server is not None
    assert {"dvc.cli", "numpy"} <= set(one.server.modules)
    assert {name.partition(".")[0] for name in one.server.modules} <= preload.PACKAGES


def test_a_fork_that_takes_too_long_is_ended_with_its_children(slow: Path) -> None:
    one = runner.Runner(slow, timeout=6)
    assert one("slow") == runner.TOO_LONG
    assert one.forks
    one.close()
    assert here(slow) == []


def test_forks_are_ended_with_their_run(slow: Path) -> None:
    one = runner.Runner(slow)
    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(one, "slow")
        pids = begun(slow, status)
        assert "preload.py" in " ".join(psutil.Process(pids[0]).cmdline())
        assert json.loads(next((slow / runner.RUNNING).glob("*.json")).read_text())["group"] == pids[2]
        one.end_all()
        assert status.result() != 0
    assert one("slow") == runner.ENDED
    assert here(slow) == []


def test_what_is_left_of_a_fork_whose_leader_was_killed_is_ended(slow: Path) -> None:
    one = runner.Runner(slow)
    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(one, "slow")
        os.kill(begun(slow, status)[2], signal.SIGKILL)
        assert status.result() == -signal.SIGKILL
    one.close()
    assert here(slow) == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_walk_that_is_ended_leaves_no_server(slow: Path, how: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "flows.walk"], cwd=slow, env=environment)
    pids = begun(slow, process)
    process.send_signal(how)
    assert process.wait(60) == (130 if how == signal.SIGTERM else -how)
    if how == signal.SIGKILL:  # the stage outlives it; the next walk ends that
        assert psutil.pid_exists(pids[0])
        with walk.alone(slow):
            pass
    assert here(slow) == []


def test_stages_go_on_without_a_server(tmp_path: Path) -> None:
    text = "import sys\nopen(sys.argv[1], 'w').write('1')\n"
    stages = {"a": python("a", "a.txt"), "b": python("a", "b.txt"), "c": python("a", "c.txt")}
    folder = project(tmp_path / "one", stages, {"a": text})
    one = runner.Runner(folder)
    assert one("a") == 0
    assert one.server is not None
    one.server.process.kill()
    one.server.process.wait()
    assert [one("b"), one("c")] == [0, 0]
    assert not one.forks
    words = "this stage and those after it load the libraries themselves\n"
    assert words in walk.log_path(folder, "b").read_text()
    assert "libraries" not in walk.log_path(folder, "c").read_text()
    assert set(yaml.safe_load((folder / "dvc.lock").read_text())["stages"]) == {"a", "b", "c"}


def test_another_environment_gets_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import os, sys\nopen(sys.argv[1], 'w').write(os.environ['WORD'])\n"
    folder = project(tmp_path / "one", {"a": python("a", "a.txt"), "b": python("a", "b.txt")}, {"a": text})
    one = runner.Runner(folder)
    servers = []
    for name in "ab":
        monkeypatch.setenv("WORD", name)
        assert one(name) == 0
        servers.append(one.server)
        assert (folder / f"{name}.txt").read_text() == name
    assert servers[0] is not servers[1]
    assert servers[0] is not None
    assert servers[0].process.returncode is not None
    one.close()


def test_the_switch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNFORGE_FRESH_PROCESSES", "1")
    assert not preload.possible()
    assert not runner.Runner(tmp_path).forks
    monkeypatch.setenv("UNFORGE_FRESH_PROCESSES", "0")
    assert preload.possible()


def asked(folder: Path, command: str, **changes: str) -> dict[str, Any] | None:
    before = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    environment = {**before, "DVC_STAGE": "a", **changes}
    kwargs = {"cwd": str(folder), "env": environment, "close_fds": True, "shell": False}
    return preload._script(lambda line: ["/bin/sh", "-c", line], command, kwargs, before)


def test_only_a_command_that_a_shell_takes_as_it_is_is_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "a.py").touch()
    (tmp_path / "a.py").touch()
    monkeypatch.chdir(tmp_path)
    found = asked(tmp_path, "python stages/a.py x/y/s0 --asset run=models/a~b,c@d")
    assert found is not None
    assert found["arguments"] == ["stages/a.py", "x/y/s0", "--asset", "run=models/a~b,c@d"]
    assert found["environment"]["DVC_STAGE"] == "a"
    assert Path(found["python"]) == Path(sys.executable).with_name("python")
    words = [
        "'x y'",
        "$HOME",
        "~",
        "a=~/x",
        "x:~",
        "*",
        "> x",
        "; x",
        "{a,b}",
        "&",
        "=x",
        "\\x",
        "#x",
        "é",
        "\nx",
        "`x`",
    ]
    assert [word for word in words if asked(tmp_path, f"python stages/a.py {word}")] == []
    others = [
        "python a.py",
        "python -O stages/a.py",
        "python stages/b.py",
        "python stages/../a.py",
        "python3 stages/a.py",
    ]
    assert [command for command in others if asked(tmp_path, command)] == []
    assert asked(tmp_path.parent, "python stages/a.py") is None
    assert asked(tmp_path, "python stages/a.py", OMP_NUM_THREADS="17") is None
    other = tmp_path / "bin"
    other.mkdir()
    (other / "python").symlink_to(sys.executable)
    assert asked(tmp_path, "python stages/a.py", PATH=f"{other}:/usr/bin:/bin") is None


def test_an_unknown_dvc_runs_commands_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.stage import run

    def other(executable: str, cmd: str) -> None:
        raise AssertionError

    monkeypatch.setattr(run, "_run", other)
    preload._intercept(None, {}, sys.path)  # type: ignore[arg-type]
    assert run._run is other


@pytest.mark.slow
def test_no_library_that_is_loaded_early_runs_a_thread() -> None:
    code = "import importlib, sys, threading\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "print(threading.active_count())\n"
    run = subprocess.run([sys.executable, "-c", code, *sorted(preload.PACKAGES)], capture_output=True, text=True)
    assert run.stdout == "1\n", run.stderr
