"""Run the stale stages of the DVC graph side by side: what `dvc repro` would do, `--jobs` at a time.

DVC's own graph is read, never written: each stage is one `dvc --wait-for-lock repro -s STAGE` in its own
process group, as soon as its upstreams are done. At the end the `dvc.lock` files are put in canonical form
(stages sorted), so parallel, serial and interrupted runs give the same bytes.

One walk at a time works in a repository. A stage that outlived its walk (which was killed) is ended first.

    python -m flows.walk [TARGET ...] [--jobs 2]
"""

from __future__ import annotations

import argparse
import contextvars
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import locks, verdict
from flows.runner import RUNNING as RUNNING
from flows.runner import TOO_LONG
from flows.runner import Runner as Runner
from flows.runner import end as end
from flows.runner import log_path as log_path

LOCK = Path(".unforge/walk.lock")


@dataclass(frozen=True)
class Graph:
    """The stages of a DVC repository by addressing (`file:name`, or `name` in the root file)."""

    upstream: dict[str, frozenset[str]]
    stale: frozenset[str]
    """Stages whose own dependencies, command, parameters or outputs changed."""
    pool: dict[str, str] = field(default_factory=dict)
    """Work pool of the stages that name one in dvc.yaml (`meta: {pool: gpu}`)."""

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
    """DVC's graph and status, read-only; remembered where nothing was stale and no file changed since.

    ValueError while another process works on the same repository.
    """
    from dvc.lock import LockError
    from dvc.repo import Repo

    begin, known = time.time_ns(), verdict.recall(root)
    if known is not None:
        return Graph(
            {stage: frozenset(needs) for stage, needs in known["upstream"].items()}, frozenset(), known["pool"]
        )
    with Repo(str(root)) as repo:
        graph = repo.index.graph
        names = {
            stage.addressing: address(root, stage) for stage in graph
        }  # DVC's own depends on the working directory
        upstream = {names[s.addressing]: frozenset(names[u.addressing] for u in graph.successors(s)) for s in graph}
        try:
            with repo.lock, _once():  # repo.status() says the same after reading every file once more
                changed = [s for s in graph if s.changed_stage() or s.changed_deps() or s.changed_outs()]
        except LockError as error:
            raise ValueError(f"another run is at work in {root}: wait for it, or end it ({error})") from None
        pools = {names[s.addressing]: s.meta["pool"] for s in graph if getattr(s, "meta", None) and "pool" in s.meta}
        stale = frozenset(names[stage.addressing] for stage in changed)
        if not stale:
            known = {"upstream": {stage: sorted(needs) for stage, needs in upstream.items()}, "pool": pools}
            verdict.keep(root, known, [one.fs_path for stage in graph for one in (*stage.deps, *stage.outs)], begin)
    return Graph(upstream, stale, pools)


@contextmanager
def _once() -> Iterator[None]:
    """Let DVC parse each file of parameters and hash each file once, and not once for every stage that names it."""
    from dvc.dependency import param
    from dvc.output import Output

    load, digest = param.load_path, Output.get_hash
    files: dict[str, Any] = {}
    digests: dict[tuple[str, str], Any] = {}

    def loaded(path: str, fs: Any, **options: Any) -> Any:
        if path not in files:
            files[path] = load(path, fs, **options)
        return files[path]

    def digested(out: Any) -> Any:
        key = (out.fs_path, out.hash_name)
        if key not in digests:
            digests[key] = digest(out)
        return digests[key]

    param.load_path, Output.get_hash = loaded, digested
    try:
        yield
    finally:
        param.load_path, Output.get_hash = load, digest


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


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold a repository's lock against other walks, and end the stages that a killed walk left running.

    Raises ValueError while another walk holds it. The kernel drops the lock with its process, whatever ends that.
    """
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "another process"
            raise ValueError(f"another run is at work in {root} ({who}): wait for it, or end it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        for record in sorted((root / RUNNING).glob("*.json")):
            try:
                left = json.loads(record.read_text(encoding="utf-8"))
                if end(int(left["group"]), float(left["started"]) - 1):
                    print(f"ended {record.stem}, which a killed run had left running", file=sys.stderr, flush=True)
            except (ValueError, KeyError):  # killed while the record was written
                pass
            record.unlink(missing_ok=True)
        locks.free(root)
        yield


@dataclass(frozen=True)
class Progress:
    """A stage ended."""

    stage: str
    ok: bool
    seconds: float
    done: int
    running: int
    left: int
    elapsed: float
    """Seconds since the walk began."""

    def __str__(self) -> str:
        word = "done" if self.ok else "FAILED"
        counts = f"{self.done} done, {self.running} running, {self.left} left"
        return f"[{self.elapsed:6.0f} s] {word} {self.stage} ({self.seconds:.1f} s); {counts}"


def walk(
    root: Path,
    targets: Iterable[str] = (),
    jobs: int = 2,
    run: Callable[[str], int] | None = None,
    report: Callable[[Progress], None] = print,
) -> Result:
    """Run what is stale among `targets` (default: everything), `jobs` stages at a time.

    `run` does one stage and gives its exit status (default: a `Runner`). A failing stage stops its dependants
    only. Raises ValueError on an unknown target and while another walk works in `root`.
    """
    with alone(root):
        locks.canonical(root)
        graph = read_graph(root)
        runner = Runner(root)
        try:
            targets = list(targets)
            wanted = resolve(graph, targets) if targets else list(graph.upstream)
            return follow(root, graph, wanted, jobs, run or runner, report)
        except BaseException:
            runner.end_all()
            raise
        finally:
            runner.close()
            locks.canonical(root)


def follow(
    root: Path,
    graph: Graph,
    wanted: list[str],
    jobs: int,
    run: Callable[[str], int],
    report: Callable[[Progress], None],
    elsewhere: frozenset[str] = frozenset(),
) -> Result:
    """Run what is stale among `wanted` and what they need. The caller holds `alone(root)`.

    Stages in `elsewhere` run on other machines: `jobs` does not count them.
    """
    todo = graph.pending(wanted)
    result = Result(fresh=len(graph.ancestors(wanted)) - len(todo))
    heights = graph.height()
    queue = sorted(todo, key=lambda s: (-heights[s], s))
    active: dict[Future[int], tuple[str, float]] = {}
    total, begin = len(queue), time.monotonic()
    pool = ThreadPoolExecutor(jobs + len(todo & elsewhere))
    try:
        while queue or active:
            for stage in list(queue):
                blocked = next(
                    (u for u in sorted(graph.upstream[stage]) if u in result.failed or u in result.skipped), None
                )
                if blocked is not None:
                    result.skipped[stage] = result.skipped.get(blocked, blocked)
                    queue.remove(stage)
            ready = [s for s in queue if all(u in result.ran or u not in todo for u in graph.upstream[s])]
            here = [s for s in ready if s not in elsewhere]
            busy = sum(stage not in elsewhere for stage, _ in active.values())
            for stage in [*here[: jobs - busy], *(s for s in ready if s in elsewhere)]:
                queue.remove(stage)
                active[pool.submit(contextvars.copy_context().run, run, stage)] = (stage, time.monotonic())
            if not active:
                continue
            done, _ = wait(active, return_when=FIRST_COMPLETED)
            for future in done:
                stage, start = active.pop(future)
                seconds = time.monotonic() - start
                text = _failure(root, stage, future)
                if text is None:
                    result.ran[stage] = seconds
                else:
                    result.failed[stage] = text
                left = total - len(result.ran) - len(result.failed) - len(result.skipped) - len(active)
                elapsed = time.monotonic() - begin
                report(Progress(stage, text is None, seconds, len(result.ran), len(active), left, elapsed))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return result


def _failure(root: Path, stage: str, future: Future[int]) -> str | None:
    """Why a stage failed: status and last lines of its log; None when it did not."""
    try:
        status = future.result()
    except Exception as error:  # no log could be opened, no node took it: the others go on
        return f"{type(error).__name__}: {error}"
    return None if status == 0 else tail(log_path(root, stage), status)


def interrupt(*_: object) -> None:
    """Signal handler: end as if by Ctrl-C, with every stage that runs."""
    raise KeyboardInterrupt


def tail(log: Path, status: int, lines: int = 15) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    what = "ended, it took too long" if status == TOO_LONG else f"exit status {status}"
    return "\n".join([f"{what}; log: {log}", *text[-lines:]])


def say(result: Result) -> int:
    """Print what a walk did; the exit status it ends with."""
    print(f"{len(result.ran)} ran, {result.fresh} were fresh", end="")
    print(f", {len(result.failed)} failed, {len(result.skipped)} not started", flush=True)
    for stage, text in result.failed.items():
        print(f"\nFAILED {stage}: {text}", file=sys.stderr)
    for stage, cause in sorted(result.skipped.items()):
        print(f"not started {stage}: it needs {cause}", file=sys.stderr)
    return 1 if result.failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.walk", description=__doc__.split("\n\n")[0])
    parser.add_argument("targets", nargs="*", help="stages, tables (sparsevit.table_6) or dvc.yaml files; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="stages at a time (default 2)")
    options = parser.parse_args(arguments)
    root = Path.cwd()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        result = walk(root, options.targets, max(1, options.jobs), report=lambda line: print(line, flush=True))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished stages are kept, the rest runs next time", file=sys.stderr)
        return 130
    return say(result)


if __name__ == "__main__":
    sys.exit(main())
