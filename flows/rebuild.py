"""Are the committed tables what the committed code makes? Two checks for a clean checkout.

1. Every `dvc.lock` is fresh: the hashes in it are those of the files, commands and scale values in git.
2. One table, chosen by the commit's hash, is built again in a clone and compared with the committed one.

    python -m flows.rebuild [--table sparsevit.table_6] [--tolerance 0.1] [--jobs 2]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flows import smoke, walk

# Another processor or torch build changes the last bits of a training step and with them, after some hundred
# steps, the second digit of a small model's score. On the same machine the tables are equal byte for byte.
TOLERANCE = 0.1


def stale_locks(root: Path) -> list[str]:
    """Stages whose recorded dependencies, command or parameters are not those of the files in git.

    What a stage makes is not looked at: a clean checkout has none of it but the small tables.
    """
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        made = {out.fs_path for stage in repo.index.stages for out in stage.outs}

        def stale(dep: Any) -> bool:
            if isinstance(dep, ParamsDependency):
                return bool(dep.status())
            if made & {dep.fs_path, *map(str, Path(dep.fs_path).parents)}:
                return False
            return not dep.exists or dep.changed_checksum()

        return sorted(s.addressing for s in repo.index.stages if s.changed_stage() or any(map(stale, s.deps)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.rebuild", description=__doc__.split("\n\n")[0])
    parser.add_argument("--table", help="default: chosen by the commit's hash")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    root = Path.cwd()
    stale = stale_locks(root)
    if stale:
        print(f"the committed locks are stale for: {', '.join(stale)}; run `make repro` and commit", file=sys.stderr)
        return 1
    print("the committed locks are fresh")
    folder = root / "reports" / "small" / "tables"
    names = sorted(p.stem for p in folder.glob("*.table_*.parquet"))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    name = options.table or names[int(commit, 16) % len(names)]
    print(f"rebuilding {name} of {len(names)} tables", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        into = Path(temporary) / "clone"
        smoke.clone(root, into, "small")
        os.environ["PYTHONPATH"] = str(into / "src")
        result = walk.walk(into, [name], options.jobs, report=lambda line: print(line, flush=True))
        for stage, text in result.failed.items():
            print(f"\nFAILED {stage}: {text}", file=sys.stderr)
        if result.failed:
            return 1
        old, new = folder / f"{name}.parquet", into / "reports" / "small" / "tables" / f"{name}.parquet"
        if old.read_bytes() == new.read_bytes():
            print(f"{name}: byte for byte the committed table")
            return 0
        from unforge import cells

        moved = cells.diff(pq.read_table(old), pq.read_table(new), options.tolerance)
        for row in moved.to_pylist():
            print(row, file=sys.stderr)
        print(f"{name}: {moved.num_rows} cells differ by more than {options.tolerance}")
        return 1 if moved.num_rows else 0


if __name__ == "__main__":
    sys.exit(main())
