"""The `dvc.lock` files: one order of their stages, and merging them stage by stage.

python -m flows.locks        sort them
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path


def canonical(root: Path) -> None:
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
            try:
                dump_yaml(str(temporary), lock)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)


def main() -> int:
    canonical(Path.cwd())
    return 0


if __name__ == "__main__":
    sys.exit(main())
