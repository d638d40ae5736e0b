"""What a stage loads and reads: runs stage commands one after the other, each in a forked process, and records it.

    python recorder.py RESULT.json < COMMANDS      one line per command: python stages/X.py ARGUMENTS

Big packages are loaded before the fork, unforge in each process anew. The record of a command: its exit status,
`code` (files of unforge that were loaded), `read` (other files of the project that were opened through Python or
given to Arrow) and `values` (keys of the profile).
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "webdataset",
    "pyarrow.parquet",
    "cv2",
    "scipy.fft",
    "imagehash",
    "pydantic",
    "yaml",
    "tqdm",
    "safetensors.torch",
)


class Watched(dict[str, Any]):
    """A mapping that notes which of its keys are asked for, by the path of keys to them."""

    def __init__(self, values: dict[str, Any], note: set[str], path: str = "") -> None:
        super().__init__({k: Watched(v, note, f"{path}{k}.") if isinstance(v, dict) else v for k, v in values.items()})
        self.note, self.path = note, path

    def __getitem__(self, key: str) -> Any:
        self.note.add(self.path + key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.note.add(self.path + key)
        return super().get(key, default)


def record(command: list[str], target: Path) -> None:
    """Run one command in this process and write what it did."""
    root, opened, values = Path.cwd(), set[str](), set[str]()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[1] in ("r", "rb"):
            opened.add(os.path.abspath(arguments[0]))

    sys.addaudithook(hook)
    import pyarrow.parquet as pq

    from unforge import profiles

    read_table, load = pq.read_table, profiles.load

    def arrow(source: Any, *rest: Any, **options: Any) -> Any:
        if isinstance(source, str | Path):
            opened.add(os.path.abspath(source))
        return read_table(source, *rest, **options)

    def watched(name: str | None = None) -> profiles.Profile:
        profile = load(name)
        object.__setattr__(profile, "values", Watched(profile.values, values))
        values.clear()
        return profile

    def attribute(profile: profiles.Profile, name: str) -> Any:
        if name in ("machine", "model", "stand_ins", "seed"):
            values.add(name)
        return object.__getattribute__(profile, name)

    pq.read_table, profiles.load = arrow, watched
    profiles.Profile.__getattribute__ = attribute  # type: ignore[method-assign,assignment]
    if "count" in command[1]:  # all variants take half a minute and load nothing more than one
        from unforge import methods

        variants = methods.load_module(command[2]).VARIANTS
        for variant in list(variants)[1:]:
            del variants[variant]
    status: object = 0
    sys.argv = command[1:]
    try:
        runpy.run_path(command[1], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        status = traceback.format_exc()
    package = Path(sys.modules["unforge"].__file__ or "").parent
    files = [Path(m.__file__) for n, m in sys.modules.items() if n.split(".")[0] == "unforge" and m.__file__]
    inside = [Path(path).relative_to(root) for path in opened if Path(path).is_relative_to(root)]
    result = {
        "status": status,
        "code": sorted(f"src/unforge/{file.relative_to(package)}" for file in files),
        "read": sorted(str(p) for p in inside if p.suffix not in {".py", ".pyc"}),
        "values": sorted(values),
    }
    target.write_text(json.dumps(result), encoding="utf-8")


def main() -> None:
    for name in PACKAGES:
        importlib.import_module(name)
    commands = [line.split() for line in sys.stdin]
    results = []
    for index, command in enumerate(commands):
        part = Path(f"{sys.argv[1]}.{index}")
        child = os.fork()
        if child == 0:
            try:
                record(command, part)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        results.append(json.loads(part.read_text(encoding="utf-8")))
    Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
