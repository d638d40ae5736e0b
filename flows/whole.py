"""The `dvc` command, with its locks and run-cache entries replaced whole: as before or as after, whenever it ends.

    python flows/whole.py --wait-for-lock repro -s STAGE

DVC 3.67 empties a lock and then writes it, which takes seconds for a long one. A kill or a full disk meanwhile
left half a lock, which no later command could read, or an empty folder of the run-cache, with which its stage
failed for ever.

DVC also parses and writes all stages of a lock for one that changed, seconds for a long lock. Here one stage's text
is replaced where DVC wrote the rest, as a digest says (`WRITTEN`): what DVC parses of that, it writes as it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dvc import cli, dvcfile
from dvc.stage.cache import StageCache
from dvc.utils.serialize import _common, _yaml

HEAD = "schema: '2.0'\nstages:\n"
WRITTEN = Path(".unforge/written.json")
"""Digests of the locks as DVC wrote them here."""


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


class Blocks(dict[str, Any]):
    """The stages of a lock, each as text that is parsed when it is asked for, and `None` until it is replaced."""

    def __init__(self, texts: dict[str, str]) -> None:
        super().__init__(dict.fromkeys(texts))
        self.texts = texts

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self.texts or self[name] is not None:
            return super().get(name, default)
        return _yaml.parse_yaml(HEAD + self.texts[name], "dvc.lock")["stages"][name]

    def text(self) -> str:
        """The lock that DVC would write."""
        for name, stage in self.items():
            if stage is not None:
                stream = io.StringIO()
                _yaml._dump({"stages": {name: stage}}, stream)
                self.texts[name] = stream.getvalue().removeprefix("stages:\n")
        return HEAD + "".join(self.texts.values())


def blocks(text: str) -> Blocks | None:
    """The stages of a lock's text; None when it is not only stages with plain names."""
    if not text.startswith(HEAD):
        return None
    parts = re.split(r"(?m)^(?=\S|  \S)", text[len(HEAD) :])[1:]
    names = [re.match(r"  ([A-Za-z][\w@.-]*):\n", part, re.ASCII) for part in parts]
    return Blocks({name[1]: part for name, part in zip(names, parts, strict=True) if name}) if all(names) else None


@contextmanager
def modify(path: Any, fs: Any = None) -> Iterator[dict[str, Any]]:
    """What `modify_yaml` of DVC does to a lock while a stage is entered."""
    place, digests = os.path.abspath(path), {}
    with suppress(OSError, ValueError):
        digests = json.loads(WRITTEN.read_text(encoding="utf-8"))
    text = Path(path).read_bytes() if os.path.isfile(path) else b""
    stages = blocks(text.decode()) if digests.get(place) == hashlib.sha256(text).hexdigest() else None
    if stages is None:
        with _yaml.modify_yaml(path, fs=fs) as data:
            yield data
    else:
        lock: dict[str, Any] = {"schema": "2.0", "stages": stages}
        yield lock
        assert list(lock) == ["schema", "stages"]
        assert lock["stages"] is stages
        dump(path, stages.text(), lambda words, file: file.write(words))
    WRITTEN.parent.mkdir(exist_ok=True)
    digests[place] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    dump(WRITTEN, digests, json.dump)


def dump_stages(lockfile: Any, stages: Any, **arguments: Any) -> None:
    """`Lockfile.dump_stages` of DVC with `modify`."""
    whole, dvcfile.modify_yaml = dvcfile.modify_yaml, modify
    try:
        DUMP_STAGES(lockfile, stages, **arguments)
    finally:
        dvcfile.modify_yaml = whole


DUMP_STAGES = dvcfile.Lockfile.dump_stages


def main() -> int:
    known = hasattr(_common, "_dump_data") and hasattr(_yaml, "_dump_data") and hasattr(StageCache, "_get_cache_dir")
    known = known and hasattr(dvcfile, "modify_yaml") and hasattr(_yaml, "_dump")
    if not known:
        sys.exit("error: this DVC is not one that flows/whole.py knows: install 3.67, as constraints.txt has it")
    _common._dump_data = _yaml._dump_data = dump
    StageCache._get_cache_dir = folder
    dvcfile.Lockfile.dump_stages = dump_stages
    return int(cli.main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
