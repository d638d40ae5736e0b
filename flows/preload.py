"""Stages in processes forked from one that has loaded the libraries: a stage costs what it computes.

A new interpreter needs seconds of processor time to import DVC, torch and transformers before a stage begins. Here
a server imports what earlier stages of the walk imported (libraries only, `PACKAGES`) and forks a process for each
stage. That one leads a session of its own and forks two more: DVC, and each `python stages/X.py` that DVC runs. Both
start from a state in which libraries are loaded and nothing was run. Code of the repository is never loaded before
the fork, so a stage sees its files as they are when it begins.

    python flows/preload.py SOCKET      what `Server` starts; requests come over that file descriptor

Shared by the forks, and of no consequence: the seed of string hashes, and import-time settings of libraries (filters
of warnings). Generators of random numbers that libraries seed on import are seeded again; stages draw from
`seeds.generator` only.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import importlib
import importlib.machinery
import inspect
import json
import multiprocessing.connection
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import types
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

# fmt: off
PACKAGES = frozenset({
    "PIL", "cv2", "dvc", "imagehash", "jinja2", "matplotlib", "numpy", "peft", "pyarrow", "pydantic", "ruamel",
    "safetensors", "scipy", "tokenizers", "torch", "tqdm", "transformers", "voluptuous", "webdataset", "yaml",
})
# fmt: on
"""Libraries that may be loaded before a fork: none of them runs a Python thread when it is imported."""
PLAIN = re.compile(r"python (stages/\w+\.py)((?: [\w@%+,./-](?:[\w@%+=:,./-]|(?<=\w)~)*)*)", re.ASCII)
"""Commands in which a shell has nothing to expand."""
OWN = {"PWD", "OLDPWD", "SHLVL", "_"}
"""Variables that a shell sets for what it runs."""
LOG = Path(".unforge/preload.log")


def possible() -> bool:
    """Whether stages may be forked here: on Linux, without an accelerator (its driver does not survive a fork)."""
    accelerators = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("kfd")]
    return sys.platform == "linux" and os.environ.get("UNFORGE_FRESH_PROCESSES", "0") in ("", "0") and not accelerators


# in the walk


class Server:
    """The process that stages are forked from. It ends with this object."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        """Start it in `root`; `environment` is that of every stage."""
        self.environment = environment
        self.modules: dict[str, None] = {}
        self.connection, theirs = socket.socketpair()
        log = root / LOG
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(Path(__file__).resolve()), str(theirs.fileno())]
        with theirs, open(log, "wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=root,
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.close = weakref.finalize(self, _stop, self.process, self.connection)

    def start(self, program: Path, arguments: list[str], log: int) -> Forked:
        """Run a Python program that calls DVC, with its output in the file `log`. OSError when the server is gone."""
        request, ours = os.pipe()
        theirs, status = os.pipe()
        try:
            forked = Forked(theirs, self.modules)
            try:
                socket.send_fds(self.connection, [b"+"], [request, status, log])
            finally:
                os.close(request)
                os.close(status)
            asked = {"arguments": [str(program), *arguments], "modules": list(self.modules)}
            with open(ours, "w", encoding="utf-8", closefd=False) as file:
                json.dump(asked, file)
        finally:
            os.close(ours)
        forked.begun()
        return forked


def _stop(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:  # it is loading libraries
        process.kill()
        process.wait()


class Forked:
    """A stage's first process, the leader of its group, as `subprocess.Popen` shows one."""

    def __init__(self, status: int, modules: dict[str, None]) -> None:
        self.status, self.modules = status, modules
        self.pid = 0
        self.returncode: int | None = None
        self.text = b""
        self.close = weakref.finalize(self, os.close, status)

    def begun(self) -> None:
        """Wait until its process is there. ConnectionError when the server ended before that."""
        while not self.pid and self.returncode is None:
            self._read()
        if not self.pid:
            raise ConnectionError("the server of loaded libraries has ended")

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, as of `subprocess.Popen.wait`; `subprocess.TimeoutExpired` after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not multiprocessing.connection.wait([self.status], left):
                raise subprocess.TimeoutExpired("dvc", timeout or 0.0)
            self._read()
        return self.returncode

    def _read(self) -> None:
        data = os.read(self.status, 1 << 16)
        *lines, self.text = (self.text + data).split(b"\n")
        for line in map(json.loads, lines):
            self.pid = line.get("pid", self.pid)
            self.returncode = line.get("status", self.returncode)
            self.modules |= dict.fromkeys(line.get("modules", []))
        if not data and self.returncode is None:
            self.returncode = -signal.SIGKILL  # it was ended before it could say how


# in the server and what it forks


def serve(connection: socket.socket) -> None:
    """Fork a process for each request until the walk has ended."""
    path = list(sys.path)
    while True:
        byte, files, _, _ = socket.recv_fds(connection, 1, 3)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not byte:
            return
        request, status, log = files
        with open(request, encoding="utf-8") as file:
            asked = json.load(file)
        _load(asked["modules"])
        if threading.active_count() > 1:
            sys.exit(f"error: a library began threads when it was imported: {threading.enumerate()}")
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork() == 0:
            try:
                connection.close()
                os.setsid()
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.close(log)
                _lead(asked, path, status)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                raise
            finally:
                os._exit(1)
        os.close(status)
        os.close(log)


def _load(modules: list[str]) -> None:
    """Import libraries, and keep their objects out of the garbage collector's way: pages stay shared."""
    missing = [name for name in modules if name not in sys.modules]
    for name in missing:
        try:
            importlib.import_module(name)
        except Exception as error:  # who needs it imports it, and sees why it fails
            print(f"{name} was not loaded: {type(error).__name__}: {error}", file=sys.stderr)
    if missing:
        gc.collect()
        gc.freeze()


def _lead(asked: dict[str, Any], path: list[str], status: int) -> None:
    """The first process of a stage: fork DVC, then each script that DVC asks for; say how DVC ended."""

    def tell(**words: Any) -> None:
        with suppress(BrokenPipeError), open(status, "wb", closefd=False) as file:
            file.write(json.dumps(words).encode() + b"\n")

    tell(pid=os.getpid())
    mine, theirs = socket.socketpair()
    seen = os.memfd_create("modules")
    known = set(sys.modules)
    before = dict(os.environ)
    dvc = os.fork()
    if dvc == 0:
        mine.close()
        os.close(status)
        _program(asked["arguments"], partial(_intercept, theirs, before, path), seen, known)
    theirs.close()
    with mine.makefile("r", encoding="utf-8") as requests:
        ended = None
        while ended is None:
            line = requests.readline()
            if line.endswith("\n") and os.fork() == 0:
                requests.close()
                mine.close()
                os.close(status)
                script = json.loads(line)
                _program(script["arguments"], partial(_fresh, script, path), seen, known)
            pid, how = os.waitpid(-1, 0)
            if pid == dvc:
                ended = os.waitstatus_to_exitcode(how)
            else:
                with suppress(BrokenPipeError):
                    mine.sendall(b"%d\n" % os.waitstatus_to_exitcode(how))
    with open(seen, encoding="utf-8") as file:
        file.seek(0)
        tell(modules=[name for line in file for name in json.loads(line)], status=ended)
    os._exit(0)


def _program(arguments: list[str], prepare: Callable[[], None], seen: int, known: set[str]) -> NoReturn:
    """Be the interpreter that runs a program, after `prepare`, and end as it does."""
    status = 1
    try:
        prepare()
        sys.argv = arguments
        file = os.path.join(os.getcwd(), arguments[0])
        module = types.ModuleType("__main__")
        loader = _Source("__main__", file)
        vars(module).update(
            __file__=file, __cached__=None, __builtins__=builtins, __loader__=loader, __annotations__={}
        )
        sys.modules["__main__"] = module
        status = _run(loader, module)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        os.write(seen, json.dumps([name for name in _libraries() if name not in known]).encode() + b"\n")
        vars(module).clear()  # files that it left open
        try:
            sys.stdout.flush()
        except OSError as error:
            print(f"Exception ignored in: {sys.stdout!r}\n{type(error).__name__}: {error}", file=sys.stderr)
            status = 120
        sys.stderr.flush()
        if ctypes := sys.modules.get("ctypes"):
            ctypes.CDLL(None).fflush(None)
    except BaseException:
        status = 1
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        os._exit(status)


class _Source(importlib.machinery.SourceFileLoader):
    """Code of a program: from its text, never from a .pyc."""

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _run(loader: _Source, module: types.ModuleType) -> int:
    """Exit status of a program; what ends it is printed as the interpreter does."""
    try:
        loader.exec_module(module)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != loader.path:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _libraries() -> list[str]:
    """Modules that are files of `PACKAGES` as installed, in the order in which they were imported."""
    places = tuple(os.path.join(sysconfig.get_path(kind), "") for kind in ("purelib", "platlib"))
    found = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in PACKAGES and isinstance(module, types.ModuleType):
            spec = vars(module).get("__spec__")  # an attribute of a lazy module would be imported
            if str(getattr(spec, "origin", "")).startswith(places):
                found.append(name)
    return found


def _intercept(connection: socket.socket, before: dict[str, str], path: list[str]) -> None:
    """Let DVC have `python stages/X.py` run by a fork. What is not known to be just that runs as ever."""
    sys.path[:] = path
    from dvc.stage import run
    from dvc.stage.exceptions import StageCmdFailedError

    plain = getattr(run, "_run", None)
    if plain is None or list(inspect.signature(plain).parameters) != ["executable", "cmd", "kwargs"]:
        return
    replies = connection.makefile("r", encoding="utf-8")

    def fork(executable: str | None, cmd: str, **kwargs: Any) -> None:
        script = _script(lambda line: run._make_cmd(executable, line), cmd, kwargs, before)
        if script is None:
            plain(executable, cmd, **kwargs)
            return
        connection.sendall(json.dumps(script).encode() + b"\n")
        status = int(replies.readline())
        if status < 0:  # what a shell says of that, and makes of it, is the shell's to know
            died = f"{script['python']} -Sc 'import os; os.kill(os.getpid(), {-status})'"
            status = subprocess.call(run._make_cmd(executable, died), cwd=kwargs["cwd"], env=kwargs["env"])
        if status != 0:
            raise StageCmdFailedError(cmd, status)

    run._run = fork


def _script(
    shell: Callable[[str], list[str]], cmd: str, kwargs: dict[str, Any], before: dict[str, str]
) -> dict[str, Any] | None:
    """What a shell would run for a stage's command, and in which environment. None when a fork is not the same."""
    match = PLAIN.fullmatch(cmd)
    if match is None or set(kwargs) != {"cwd", "env", "close_fds", "shell"} or kwargs["shell"]:
        return None
    folder = kwargs["cwd"]
    if os.path.realpath(folder) != os.getcwd() or not os.path.isfile(os.path.join(folder, match[1])):
        return None
    words = shell("command -v python && env -0")
    said = subprocess.run(words, cwd=folder, env=kwargs["env"], stdin=subprocess.DEVNULL, capture_output=True)
    python, _, text = said.stdout.decode(errors="surrogateescape").partition("\n")
    if said.returncode != 0 or said.stderr or not os.path.isabs(python):
        return None
    if os.path.dirname(python) != os.path.dirname(sys.executable) or not os.path.samefile(python, sys.executable):
        return None
    environment = dict(line.split("=", 1) for line in text.split("\0") if line)
    if environment.get("_", "") != kwargs["env"].get("_", ""):
        environment["_"] = python
    changed = {name for name, _ in environment.items() ^ before.items()} - OWN
    if not all(name.startswith("DVC_") for name in changed):
        return None  # the libraries were loaded with other settings
    return {"python": python, "arguments": [match[1], *match[2].split()], "environment": environment}


def _fresh(script: dict[str, Any], path: list[str]) -> None:
    """What a new interpreter has: environment, module path, streams, generators of random numbers."""
    os.environ.clear()
    os.environ.update(script["environment"])
    first = [] if sys.flags.safe_path else [os.path.dirname(os.path.realpath(script["arguments"][0]))]
    sys.path[:] = [*first, *path]
    sys.path_importer_cache.clear()
    importlib.invalidate_caches()
    sys.executable = script["python"]
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # DVC has colorama in between
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]
    serve(socket.socket(fileno=int(sys.argv[1])))
