"""The whole pipeline at another scale, in a clone that shares the cache: `params.yaml` and the locks stay untouched.

    python -m flows.smoke [--profile smoke] [--jobs 2] [--into DIR] [TARGET ...]

The clone has the work tree's uncommitted changes too. A second walk must find nothing to do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flows import walk


def git(root: Path, *arguments: str) -> list[str]:
    text = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout
    return [line for line in text.split("\0") if line]


def clone(root: Path, into: Path, profile: str) -> None:
    """A clone of the work tree at `into`, set to `profile`, with the cache of `root` and without locks."""
    subprocess.run(["git", "clone", "-q", "--shared", str(root), str(into)], check=True)
    for name in git(root, "ls-files", "-z", "--modified", "--others", "--exclude-standard"):
        source, target = root / name, into / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        else:
            target.unlink(missing_ok=True)
    seed = (root / "params.yaml").read_text(encoding="utf-8").split("seed:")[1].strip()
    (into / "params.yaml").write_text(f"profile: {profile}\nseed: {seed}\n", encoding="utf-8")
    for lock in [into / "dvc.lock", *into.glob("papers/*/dvc.lock")]:
        lock.unlink(missing_ok=True)
    cache = root / ".dvc" / "cache"
    subprocess.run([sys.executable, "-m", "dvc", "cache", "dir", "--local", str(cache)], cwd=into, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.smoke", description=__doc__.split("\n\n")[0])
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--into", type=Path, help="keep the clone here (must not exist); default: a temporary one")
    options = parser.parse_args()
    root = Path.cwd()
    signal.signal(signal.SIGTERM, walk.interrupt)
    with tempfile.TemporaryDirectory() as temporary:
        into = options.into or Path(temporary) / "clone"
        clone(root, into, options.profile)
        os.environ["PYTHONPATH"] = str(into / "src")
        subprocess.run([sys.executable, "-m", "unforge.cli", "catalogue"], cwd=into, check=True)
        begin = time.monotonic()
        result = walk.walk(into, options.targets, options.jobs, report=lambda line: print(line, flush=True))
        print(f"{len(result.ran)} stages ran in {time.monotonic() - begin:.0f} s, {len(result.failed)} failed")
        for stage, text in result.failed.items():
            print(f"\nFAILED {stage}: {text}", file=sys.stderr)
        if result.failed:
            return 1
        again = walk.walk(into, options.targets, options.jobs, report=lambda line: print(line, flush=True))
        if again.ran or again.failed:
            print(f"a second walk ran {sorted(again.ran)}: these stages never become fresh", file=sys.stderr)
            return 1
        print(f"a second walk found all {again.fresh} stages fresh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
