"""The command `unforge reproduce`: finds what is stale, a Prefect server if none is configured, and runs the flow."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from flows import locks, runner, server, walk
from flows import since as changes

EPILOG = """examples:
  unforge reproduce                               everything that is stale
  unforge reproduce sparsevit.table_4 --jobs 4    one table and what it needs
  unforge reproduce --since main                  what changed since a revision, and what follows from it

Status 0: all is fresh; 1: a stage failed; 2: bad input, or another run is at work here; 130: interrupted."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    root = Path.cwd().resolve()
    signal.signal(signal.SIGTERM, walk.interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, walk.interrupt)
    try:
        fresh = _fresh(root, options)
        if fresh is not None:
            return walk.say(walk.Result(fresh=fresh))
        print("starting Prefect …", flush=True)
        own = server.configured_api() is None
        if options.nodes and own:
            raise ValueError(
                "--nodes needs a Prefect server that the nodes reach too: start one (python -m flows.server) and set "
                "PREFECT_API_URL here and there"
            )
        with server.api(root) as api:
            status = _run(root, api, options)
        if own:
            print("the run's page in Prefect, from now on: python -m flows.server")
        return status
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished stages are kept, the rest runs next time", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unforge reproduce",
        description="Run the stale stages side by side: the locks of `dvc repro`, sooner.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", help="stages, tables (sparsevit.table_6) or dvc.yaml files; default: all")
    parser.add_argument("--jobs", type=_positive(int), default=2, help="stages at a time (default 2)")
    parser.add_argument("--since", metavar="REV", help="only what changed since a git revision, and what follows")
    parser.add_argument("--timeout", type=_positive(float), metavar="SECONDS", help="end a stage that takes longer")
    parser.add_argument("--nodes", action="store_true", help="stages of the gpu pool run on its workers")
    return parser


def _positive(kind: type[int] | type[float]) -> Any:
    def number(text: str) -> int | float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    number.__name__ = kind.__name__
    return number


def _fresh(root: Path, options: argparse.Namespace) -> int | None:
    """How many stages the targets need when none is stale, else None. Needs no Prefect."""
    with walk.alone(root):
        locks.canonical(root)
        graph = walk.read_graph(root)
        wanted = changes.wanted(root, graph, options.targets, options.since)
    return None if graph.pending(wanted) else len(graph.ancestors(wanted))


def _run(root: Path, api: str, options: argparse.Namespace) -> int:
    import httpx

    from flows import reproduce as flows

    flows.quiet()
    flows.echo = lambda line: print(line, flush=True)
    print(f"logs: {root / runner.LOGS}", flush=True)
    try:
        state: Any = flows.reproduce(
            options.targets,
            options.jobs,
            options.since,
            options.timeout,
            options.nodes,
            str(root),
            return_state=True,
        )
    except httpx.HTTPError as error:
        print(f"error: {api} answers no more ({error}); stages that ended are kept", file=sys.stderr)
        return 1
    report = state.result(raise_on_failure=False)
    if isinstance(report, ValueError):
        raise report
    if not isinstance(report, dict):
        print(f"error: the flow run ended {state.name}: {state.message}", file=sys.stderr)
        return 1
    return walk.say(walk.Result(report["ran"], report["failed"], report["skipped"], report["fresh"]))
