"""One look at incoming and what it leads to: uploads taken in, the stages they touch run. The command of the watch."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows import walk
from flows.incoming import inbox, intake, landing, uploads
from flows.incoming.intake import Outcome, Say, Settings

LOCK = Path(".unforge/watch.lock")
HINT = "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY say where and as whom"
EPILOG = """examples:
  python -m flows.watch --once                                  one look
  python -m flows.watch --dry-run                               what it would look at
  python -m flows.watch manifest mine/ --dataset columbia       what an uploader runs before the upload

Status 0: all was looked at; 1: an upload or a stage failed; 2: bad input or no answer; 130: interrupted."""


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """One watch at a time in a workspace: ValueError while another one is at work."""
    (root / LOCK).parent.mkdir(parents=True, exist_ok=True)
    with open(root / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(f"another watch is at work in {root} ({file.read().strip()})") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def touched(graph: walk.Graph, added: Iterable[str]) -> tuple[list[str], list[str]]:
    """Stages from the ingest stages of the datasets on, and the datasets for which there is none."""
    starts = {f"ingest-{dataset}": dataset for dataset in added}
    there = set(starts) & set(graph.upstream)
    stages = sorted(stage for stage in graph.upstream if there & graph.ancestors([stage]))
    return stages, sorted(dataset for stage, dataset in starts.items() if stage not in there)


def reproduce(root: Path, run: Callable[[list[str]], list[str]], say: Say = print) -> list[str]:
    """Rebuild what the added datasets touch; the failures. `run` does the stages and gives what failed.

    ValueError from `run` (another run is at work) leaves it for the next look. A failure is reported once: the
    datasets stay, and `unforge reproduce` goes on when it is mended.
    """
    added = landing.pending(root)
    if not added:
        return []
    try:
        with walk.alone(root):
            failed = _catalogue(root)
            stages, without = touched(walk.read_graph(root), added)
    except ValueError as error:
        say(f"{', '.join(added)}: added; what they touch waits for the next look: {error}")
        return []
    for dataset in without:
        say(f"{dataset}: added; no table asks for it, so there is no stage to run (CONTRIBUTING.md, a table)")
    if stages:
        say(f"{', '.join(sorted(set(added) - set(without)))}: {len(stages)} stages to look at")
        failed += run(stages)
    (root / landing.PENDING).unlink()
    return failed


def _catalogue(root: Path) -> list[str]:
    """A real set has another stage than its stand-in: `unforge catalogue`, in a project that has papers."""
    if not (root / "papers").is_dir():
        return []
    command = [sys.executable, "-m", "unforge.cli", "catalogue"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return [] if done.returncode == 0 else [f"unforge catalogue: {done.stderr.strip()[-1000:]}"]


def once(
    settings: Settings,
    incoming: str | None,
    quarantine: str | None,
    run: Callable[[list[str]], list[str]],
    say: Say = print,
) -> tuple[list[Outcome], list[str]]:
    """One look, and what it leads to; the outcomes and what failed. ValueError while another watch works here."""
    with alone(settings.root):
        try:
            box = inbox.connect(incoming, quarantine, settings.root, settings.patience)
            outcomes = intake.look(box, settings, say)
        except (OSError, inbox.ChangedError) as error:
            raise ValueError(f"{inbox.masked(str(error))} ({HINT})") from None
        failed = [str(outcome) for outcome in outcomes if outcome.error]
        if not settings.dry_run:
            failed += reproduce(settings.root, run, say)
    return outcomes, failed


def counts(outcomes: list[Outcome]) -> str:
    states = ("taken", "quarantined", "left")
    return "Uploads: " + ", ".join(f"{sum(o.state == state for o in outcomes)} {state}" for state in states)


def _by_command(root: Path, jobs: int) -> Callable[[list[str]], list[str]]:
    """Reproduces with `python -m flows.reproduce`, which brings its own Prefect server."""

    def run(stages: list[str]) -> list[str]:
        home = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-m", "flows.reproduce", *stages, "--jobs", str(jobs)]
        with subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": search}) as process:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                process.terminate()  # it ends its stages
                raise
        if status == 2:
            raise ValueError("flows.reproduce could not begin")
        return [] if status == 0 else [f"flows.reproduce ended with status {status}"]

    return run


def _manifest(arguments: argparse.Namespace) -> int:
    manifest, refused = uploads.write_manifest(arguments.folder, arguments.dataset, arguments.note, arguments.whole)
    for name, reason in refused.items():
        print(f"will be quarantined: {uploads.shown(name)}: {reason}", file=sys.stderr)
    print(f"{arguments.folder / uploads.MANIFEST}: {len(manifest.files)} files. Upload it last.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.watch",
        description="Take in what others put under an S3 prefix, and reproduce what it touches.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--incoming", help="default: UNFORGE_INCOMING")
    parser.add_argument("--quarantine", help="default: UNFORGE_QUARANTINE, else the incoming prefix with -quarantine")
    parser.add_argument("--once", action="store_true", help="one look; otherwise one every --every seconds")
    parser.add_argument(
        "--dry-run", action="store_true", help="one look that changes nothing and downloads manifests only"
    )
    parser.add_argument("--jobs", type=int, default=2, help="stages at a time (default 2)")
    parser.add_argument("--every", type=float, default=300, help="seconds between looks (default 300)")
    parser.add_argument("--report-after", type=float, default=24, help="hours until an upload without manifest is odd")
    parser.add_argument("--settle", type=float, default=Settings.settle, help="seconds a listed file is waited for")
    parser.add_argument("--patience", type=float, default=Settings.patience, help="seconds until a claim is dead")
    return parser


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, walk.interrupt)
    try:
        if words[:1] == ["manifest"]:
            parser = argparse.ArgumentParser(prog="python -m flows.watch manifest")
            parser.add_argument("folder", type=Path)
            parser.add_argument("--dataset", required=True)
            parser.add_argument("--note", default="", help="for people")
            parser.add_argument("--whole", action="store_true", help="all files or none")
            return _manifest(parser.parse_args(words[1:]))
        options = _parser().parse_args(words)
        root = Path.cwd()
        settings = Settings(
            root=root,
            settle=options.settle,
            report_after=options.report_after * 3600,
            patience=options.patience,
            dry_run=options.dry_run,
        )
        while True:
            status = _one(settings, options)
            if options.once or options.dry_run:
                return status
            time.sleep(options.every)
    except KeyboardInterrupt:
        print("interrupted: what was taken is kept, the rest is taken next time", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _one(settings: Settings, options: argparse.Namespace) -> int:
    try:
        run = _by_command(settings.root, options.jobs)
        outcomes, failed = once(
            settings, options.incoming, options.quarantine, run, lambda text: print(text, flush=True)
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(counts(outcomes), flush=True)
    for text in failed:
        print(f"FAILED {text}", file=sys.stderr)
    return 1 if failed else 0
