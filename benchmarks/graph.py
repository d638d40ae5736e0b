"""The whole planned graph with dummy commands: about 280 stages over six files, as the papers' tables ask.

    python benchmarks/graph.py [--stages 280] [--deps 16] [--jobs 2]

Prints one JSON line per figure: seconds of a full walk, a no-op walk, a no-op `dvc repro`, one table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def write(folder: Path, stages: int, deps: int) -> None:
    """Six files: a root with shared stages and five papers of train, evaluate, table chains."""
    code = []
    for index in range(deps):
        path = folder / "code" / f"module_{index}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {index}\n")
        code.append(f"code/{path.name}")
    shared = {f"data-{i}": stage(f"shared/{i}", code[:6]) for i in range(stages // 14)}
    tables = []
    for paper in range(5):
        per_paper = (stages - len(shared)) // 5
        entries = {}
        runs = (per_paper - 6) // 2
        for run in range(runs):
            data = f"shared/{run % len(shared)}"
            entries[f"train-{run}"] = stage(f"runs/{paper}/{run}", [*code, data], wdir=True)
            entries[f"evaluate-{run}"] = stage(
                f"scores/{paper}/{run}", [*code[:10], f"runs/{paper}/{run}", data], wdir=True
            )
        for table in range(6):
            scores = [f"scores/{paper}/{run}" for run in range(table, runs, 6)]
            entries[f"table_{table}"] = stage(f"tables/{paper}.{table}", [*code[:8], *scores], wdir=True)
            tables.append(f"tables/{paper}.{table}")
        path = folder / "papers" / f"p{paper}" / "dvc.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump({"stages": entries}))
    shared["report"] = stage("report", tables)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": shared}))


def stage(out: str, deps: list[str], wdir: bool = False) -> dict[str, object]:
    entry: dict[str, object] = {
        "cmd": f"mkdir -p {Path(out).parent} && echo {out} > {out}",
        "deps": deps,
        "outs": [out],
    }
    return {"wdir": "../..", **entry} if wdir else entry


def timed(name: str, command: list[str], folder: Path) -> None:
    begin = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env=None)
    print(json.dumps({"figure": name, "seconds": round(time.monotonic() - begin, 1)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", type=int, default=280)
    parser.add_argument("--deps", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        dvc = [sys.executable, "-m", "dvc"]
        subprocess.run([*dvc, "init", "-q"], cwd=folder, check=True)
        write(folder, options.stages, options.deps)
        (folder / ".gitignore").write_text("/runs\n/scores\n/tables\n/shared\n/report\n")
        (folder / "flows").symlink_to(ROOT / "flows")
        walk = [sys.executable, "-m", "flows.walk", "--jobs", str(options.jobs)]
        timed("full walk", walk, folder)
        timed("no-op walk", walk, folder)
        timed("no-op dvc repro", [*dvc, "repro", "-q"], folder)
        (folder / "code" / "module_12.py").write_text("# changed\n")
        timed("one table after an edit", [*walk, "papers/p0/dvc.yaml:table_0"], folder)


if __name__ == "__main__":
    main()
