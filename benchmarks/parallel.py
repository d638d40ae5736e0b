"""Two stages side by side against one at a time: sleeping stages, empty stages, and the real pipeline.

    python benchmarks/parallel.py [--real [--profile small] [TARGET ...]]

Prints one JSON line per figure. `--real` builds the targets (default: everything) twice from nothing, each time in a
clone with a cache of its own: about an hour at `small` on two cores. Both clones must hold the same bytes at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from flows import server, smoke  # noqa: E402


def repository(folder: Path, stages: int, command: str) -> Path:
    """`stages` independent stages that each run `command` and write one file."""
    folder.mkdir()
    entries = {
        f"s{i}": {"cmd": f"{command} && echo {i} > o{i}", "deps": ["seed"], "outs": [f"o{i}"]} for i in range(stages)
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": entries}))
    (folder / "seed").write_text("0\n")
    (folder / ".dvcignore").write_text(".gitignore\n")
    for line in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(line, cwd=folder, check=True)
    return folder


def walk(folder: Path, jobs: int, module: str = "flows.walk", *targets: str) -> float:
    """Seconds of one run over the whole process."""
    code = f"{folder / 'src'}{os.pathsep}" if (folder / "flows").is_dir() else ""
    environment = {**os.environ, "PYTHONPATH": f"{code}{ROOT}"}
    begin = time.monotonic()
    command = [sys.executable, "-m", module, "--jobs", str(jobs), *targets]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin


def toys(temporary: Path) -> None:
    times = {
        jobs: walk(repository(temporary / f"sleep{jobs}", 10, "sleep 10"), jobs, "flows.reproduce") for jobs in (1, 2)
    }
    say("10 stages of 10 s, two side by side", serial=times[1], parallel=times[2], ratio=times[1] / times[2])
    bare = walk(repository(temporary / "bare", 20, "true"), 2)
    prefect = repository(temporary / "prefect", 20, "true")
    full = walk(prefect, 2, "flows.reproduce")
    say("20 empty stages, the walker and under Prefect", walker=bare, prefect=full, head_per_stage=(full - bare) / 20)
    say("nothing stale", prefect=walk(prefect, 2, "flows.reproduce"))


def real(temporary: Path, profile: str, targets: list[str]) -> None:
    times, bytes_ = {}, {}
    for jobs in (1, 2):
        into = temporary / f"jobs{jobs}"
        smoke.clone(ROOT, into, profile)
        (into / ".dvc" / "config.local").unlink()  # a cache of its own
        environment = {**os.environ, "PYTHONPATH": str(into / "src")}
        subprocess.run([sys.executable, "-m", "unforge.cli", "catalogue"], cwd=into, check=True, env=environment)
        times[jobs] = walk(into, jobs, "flows.walk", *targets)
        made = [*into.glob(f"reports/{profile}/tables/*"), into / "dvc.lock", *into.glob("papers/*/dvc.lock")]
        bytes_[jobs] = {p.relative_to(into): hashlib.sha256(p.read_bytes()).hexdigest() for p in made}
    same = bytes_[1] == bytes_[2]
    say(f"{profile} from nothing", serial=times[1], parallel=times[2], ratio=times[1] / times[2], same_bytes=same)


def say(what: str, **figures: float) -> None:
    print(json.dumps({"what": what, **{k: round(v, 2) for k, v in figures.items()}}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--profile", default="small")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.real:
            real(Path(temporary), options.profile, options.targets)
        else:
            with server.api(Path(temporary)):
                toys(Path(temporary))


if __name__ == "__main__":
    main()
