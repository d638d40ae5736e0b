"""Run the stale stages of the DVC graph side by side: what `dvc repro` would do, `--jobs` at a time.

DVC's own graph is read, never written: each stage is one `dvc --wait-for-lock repro -s STAGE` in its own
process group, as soon as its upstreams are done. At the end the `dvc.lock` files are put in canonical form
(stages sorted), so parallel, serial and interrupted runs give the same bytes.

    python -m flows.walk [TARGET ...] [--jobs 2]
    python -m flows.walk --canonical        only sort the locks
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOGS = Path(".unforge/logs")


@dataclass(frozen=True)
class Graph:
    """The stages of a DVC repository by addressing (`file:name`, or `name` in the root file)."""

    upstream: dict[str, frozenset[str]]
    stale: frozenset[str]
    """Stages whose own dependencies, command, parameters or outputs changed."""

    def ancestors(self, targets: Iterable[str]) -> set[str]:
        """The targets and everything they need."""
        found: set[str] = set()
        open_ = list(targets)
        while open_:
            stage = open_.pop()
            if stage not in found:
                found.add(stage)
                open_ += self.upstream[stage]
        return found

    def pending(self, targets: Iterable[str]) -> set[str]:
        """Of what the targets need: the stale stages and all that follow from them."""
        needed = self.ancestors(targets)
        return {s for s in needed if self.ancestors([s]) & self.stale}

    def height(self) -> dict[str, int]:
        """Length of the longest chain of stages that waits for each stage: long chains go first."""
        downstream: dict[str, list[str]] = {stage: [] for stage in self.upstream}
        for stage, needs in self.upstream.items():
            for need in needs:
                downstream[need].append(stage)
        heights: dict[str, int] = {}

        def visit(stage: str) -> int:
            if stage not in heights:
                heights[stage] = 1 + max((visit(s) for s in downstream[stage]), default=0)
            return heights[stage]

        for stage in self.upstream:
            visit(stage)
        return heights


@dataclass
class Result:
    """What a walk did."""

    ran: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage that succeeded."""
    failed: dict[str, str] = field(default_factory=dict)
    """Last lines of the log of each stage that failed."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Stages that were not started, and the failed stage each of them needs."""
    fresh: int = 0


def read_graph(root: Path) -> Graph:
    """DVC's graph and status, read-only. ValueError while another process works on the same repository."""
    from dvc.lock import LockError
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        graph = repo.index.graph
        names = {
            stage.addressing: address(root, stage) for stage in graph
        }  # DVC's own depends on the working directory
        upstream = {names[s.addressing]: frozenset(names[u.addressing] for u in graph.successors(s)) for s in graph}
        try:
            with repo.lock:  # repo.status() says the same after reading every file once more
                changed = [s for s in graph if s.changed_stage() or s.changed_deps() or s.changed_outs()]
        except LockError as error:
            raise ValueError(f"another run is at work in {root}: wait for it, or end it ({error})") from None
        stale = frozenset(names[stage.addressing] for stage in changed)
    return Graph(upstream, stale)


def address(root: Path, stage: Any) -> str:
    """`papers/sparsevit/dvc.yaml:table_6`, or only the name for a stage of the root file; `X.dvc` for a data file."""
    file = Path(stage.path).relative_to(root.resolve()).as_posix()
    name = getattr(stage, "name", None)
    return file if name is None else name if file == "dvc.yaml" else f"{file}:{name}"


def resolve(graph: Graph, targets: Iterable[str]) -> list[str]:
    """Stage addressings of what a user typed: a stage, `paper.table_6`, or a dvc.yaml (all of its stages)."""
    import difflib

    found: list[str] = []
    for target in targets:
        paper, _, table = target.partition(".")
        named = [target, f"papers/{paper}/dvc.yaml:{table}"]
        hits = [s for s in graph.upstream if s in named or s.split(":")[0] == target]
        if target == "dvc.yaml":
            hits = [s for s in graph.upstream if ":" not in s]
        if not hits:
            near = difflib.get_close_matches(target, [s.split(":")[-1] for s in graph.upstream], n=3)
            raise ValueError(f"no stage {target!r}" + (f": near are {', '.join(near)}" if near else ""))
        found += hits
    return found


def canonical_locks(root: Path) -> None:
    """Sort the stages of every dvc.lock. Only the order changes, which depends on what finished first."""
    from dvc.utils.serialize import dump_yaml, load_yaml

    for path in [root / "dvc.lock", *sorted(root.glob("papers/*/dvc.lock"))]:
        if not path.is_file():
            continue
        names = re.findall(r"(?m)^  (\S+):$", path.read_text(encoding="utf-8"))
        if names != sorted(names):
            lock = load_yaml(str(path))
            lock["stages"] = dict(sorted(lock["stages"].items()))
            temporary = path.with_name(".dvc.lock.sorted")
            dump_yaml(str(temporary), lock)
            os.replace(temporary, path)


def log_path(root: Path, stage: str) -> Path:
    return root / LOGS / (stage.replace("/", "~").replace(":", "~") + ".log")


class Runner:
    """Runs stages as subprocesses and can end all of them."""

    def __init__(self, root: Path, timeout: float | None = None) -> None:
        self.root = root
        self.timeout = timeout
        self.processes: set[subprocess.Popen[bytes]] = set()

    def __call__(self, stage: str) -> int:
        """Run one stage; its exit status, 124 when it was ended after `timeout` seconds."""
        log = log_path(self.root, stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-s", stage]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        with open(log, "wb") as file:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env={**os.environ, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.processes.add(process)
            try:
                return process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                self.end(process)
                return 124
            finally:
                self.processes.discard(process)

    @staticmethod
    def end(process: subprocess.Popen[bytes]) -> None:
        """End a stage's whole process group: terminate, and kill what is left after 5 s."""
        try:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        except ProcessLookupError:
            pass

    def end_all(self) -> None:
        for process in list(self.processes):
            self.end(process)


def walk(
    root: Path,
    targets: Iterable[str] = (),
    jobs: int = 2,
    run: Callable[[str], int] | None = None,
    report: Callable[[str], None] = print,
) -> Result:
    """Run what is stale among `targets` (default: everything), `jobs` stages at a time.

    A failing stage stops its dependants only. Raises ValueError on an unknown target.
    """
    canonical_locks(root)
    graph = read_graph(root)
    wanted = resolve(graph, targets) if targets else list(graph.upstream)
    todo = graph.pending(wanted)
    result = Result(fresh=len(graph.ancestors(wanted)) - len(todo))
    runner = Runner(root)
    run = run or runner
    heights = graph.height()
    queue = sorted(todo, key=lambda s: (-heights[s], s))
    active: dict[Future[int], tuple[str, float]] = {}
    total, begin = len(queue), time.monotonic()
    try:
        with ThreadPoolExecutor(jobs) as pool:
            try:
                while queue or active:
                    for stage in list(queue):
                        blocked = next(
                            (u for u in sorted(graph.upstream[stage]) if u in result.failed or u in result.skipped),
                            None,
                        )
                        if blocked is not None:
                            result.skipped[stage] = result.skipped.get(blocked, blocked)
                            queue.remove(stage)
                    ready = [s for s in queue if all(u in result.ran or u not in todo for u in graph.upstream[s])]
                    for stage in ready[: jobs - len(active)]:
                        queue.remove(stage)
                        active[pool.submit(run, stage)] = (stage, time.monotonic())
                    if not active:
                        continue
                    done, _ = wait(active, return_when=FIRST_COMPLETED)
                    for future in done:
                        stage, start = active.pop(future)
                        seconds = time.monotonic() - start
                        status = future.result()
                        if status == 0:
                            result.ran[stage] = seconds
                        else:
                            result.failed[stage] = _tail(log_path(root, stage), status)
                        left = total - len(result.ran) - len(result.failed) - len(result.skipped)
                        word = "done" if status == 0 else "FAILED"
                        report(
                            f"[{time.monotonic() - begin:6.0f} s] {word} {stage} ({seconds:.1f} s); "
                            f"{len(result.ran)} done, {len(active)} running, {left - len(active)} left"
                        )
            except BaseException:
                runner.end_all()
                raise
    finally:
        canonical_locks(root)
    return result


def interrupt(*_: object) -> None:
    """Signal handler: end as if by Ctrl-C, with every stage that runs."""
    raise KeyboardInterrupt


def _tail(log: Path, status: int, lines: int = 15) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return "\n".join([f"exit status {status}, log: {log}", *text[-lines:]])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.walk", description=__doc__.split("\n\n")[0])
    parser.add_argument("targets", nargs="*", help="stages, tables (sparsevit.table_6) or dvc.yaml files; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="stages at a time (default 2)")
    parser.add_argument("--canonical", action="store_true", help="only sort the dvc.lock files")
    options = parser.parse_args(arguments)
    root = Path.cwd()
    signal.signal(signal.SIGTERM, interrupt)
    if options.canonical:
        canonical_locks(root)
        return 0
    try:
        result = walk(root, options.targets, max(1, options.jobs), report=lambda line: print(line, flush=True))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished stages are kept, the rest runs next time", file=sys.stderr)
        return 130
    print(f"{len(result.ran)} ran, {result.fresh} were fresh", end="")
    print(f", {len(result.failed)} failed, {len(result.skipped)} not started")
    for stage, text in result.failed.items():
        print(f"\nFAILED {stage}: {text}", file=sys.stderr)
    for stage, cause in sorted(result.skipped.items()):
        print(f"not started {stage}: it needs {cause}", file=sys.stderr)
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
