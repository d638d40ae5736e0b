"""Where everything lies, relative to the project's root, and how artefacts are written."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
ID = re.compile(r"[a-z][a-z0-9_]{0,31}")


def root() -> Path:
    """The project directory: the nearest one above the working directory with `params.yaml` and `profiles/`.

    Raises FileNotFoundError outside a project.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "profiles").is_dir():
            return folder
    raise FileNotFoundError(f"no unforge project at or above {here}: change to a clone of the repository")


def check_id(name: str) -> str:
    """`name` if it is a valid dataset id, else ValueError."""
    if not ID.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a dataset id: use lower-case letters, digits and _ (at most 32, a letter first)"
        )
    return name


def raw(dataset: str) -> Path:
    return Path("data/raw") / dataset


def shards(profile: str, testset: str) -> Path:
    return Path("data/shards") / profile / testset


def protocol(profile: str, name: str) -> Path:
    return Path("data/protocols") / profile / name


def backbone(profile: str, name: str) -> Path:
    return Path("models") / profile / "backbones" / name


def codebook(profile: str, name: str) -> Path:
    """A tokenizer's folder."""
    return Path("models") / profile / "codebooks" / name


def prior(profile: str, name: str) -> Path:
    return Path("models") / profile / "priors" / name


def inverse(profile: str, name: str) -> Path:
    """`name` is a tokenizer's, or that and `_augmented`."""
    return Path("models") / profile / "inverse" / name


def generated(origin: str) -> str:
    """Name of the set of images that a model generated."""
    return f"generated_{origin}"


def run(profile: str, name: str) -> Path:
    return Path("models") / profile / "runs" / name


def scores(profile: str, name: str) -> Path:
    return Path("reports") / profile / "scores" / name


def counts(profile: str, method: str) -> Path:
    return Path("reports") / profile / "counts" / f"{method}.parquet"


def table(profile: str, name: str) -> Path:
    """`name` is `<paper>.table_N` or `<paper>.figure_N`; without a suffix."""
    return Path("reports") / profile / "tables" / name


def report(profile: str) -> Path:
    return Path("reports") / profile / "index.html"


def resume(stage: str, digest: str) -> Path:
    """Resumable state: outside every DVC output, because DVC deletes outputs before a stage runs."""
    return Path(".unforge/resume") / stage.replace("/", "~") / digest


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex digest of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target` that becomes `target` when the block ends without error.

    Killed at any point, nothing that looks finished is left, and the next to write `target` clears the rest.
    A writer holds a kernel lock on its directory, which ends with the process, whatever ends that.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}.writing.*"):
        if (lock := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.writing.", dir=target.parent))
    lock = _lock(temporary)
    temporary.chmod(0o755)
    try:
        yield temporary
        if target.is_dir():
            shutil.rmtree(target)
        elif target.exists():
            target.unlink()
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Descriptor that holds the lock of a directory; None when another holds it or the file system has no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def writing_file(target: Path) -> Iterator[Path]:
    """The same for one file: a temporary path beside `target`, renamed at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def meta(config: Mapping[str, Any], seed: int, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What every artefact carries. No time, no absolute path, no library version: equal inputs, equal bytes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "config": dict(config),
        "seed": seed,
        "inputs": dict(sorted(inputs.items())),
    }


def write_json(path: Path, value: Any) -> None:
    """Sorted, indented, newline at the end."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
