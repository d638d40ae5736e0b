"""The `dvc` command, with its locks and run-cache entries replaced whole: as before or as after, whenever it ends.

    python flows/whole.py --wait-for-lock repro -s STAGE

DVC 3.67 empties a lock and then writes it, which takes seconds for a long one. A kill or a full disk meanwhile
left half a lock, which no later command could read, or an empty folder of the run-cache, with which its stage
failed for ever.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from dvc import cli
from dvc.stage.cache import StageCache
from dvc.utils.serialize import _common, _yaml


def dump(path: Any, data: Any, dumper: Any, fs: Any = None, **arguments: Any) -> None:
    """What `_dump_data` of DVC does, on a file beside `path` that then takes its place."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            dumper(data, file, **arguments)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def folder(cache: Any, key: str) -> str:
    """What `_get_cache_dir` of DVC's run-cache does; a folder without an entry is taken away."""
    path = os.path.join(cache.cache_dir, key[:2], key)
    with suppress(OSError):
        os.rmdir(path)
    return path


def main() -> int:
    known = hasattr(_common, "_dump_data") and hasattr(_yaml, "_dump_data") and hasattr(StageCache, "_get_cache_dir")
    if not known:
        sys.exit("error: this DVC is not one that flows/whole.py knows: install 3.67, as constraints.txt has it")
    _common._dump_data = _yaml._dump_data = dump
    StageCache._get_cache_dir = folder
    return int(cli.main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
