"""What an upload may hold: its manifest, the names and sizes in it, and the contents. All of it is taken as hostile.

Files are decoded in a child process with bounds: one that crashes or hangs its decoder is a bad file and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from unforge import datasets, paths
from unforge.datasets import archives, layout

MANIFEST = "manifest.json"
UPLOAD_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
NAME_BYTES = 400
"""Longest name of a file, in bytes: with its prefix, and escaped, it must still be a key of S3 (1024)."""
ENDINGS = {**dict.fromkeys(layout.IMAGE_EXTENSIONS, "image"), "npy": "npy", "safetensors": "safetensors"}
NPY = b"\x93NUMPY"
SECONDS, MEMORY = 120.0, 8 * 2**30
"""What one file's decoder may take: seconds, and bytes of address space."""
READY = "ready"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Quotas, looked at in the listing before anything is downloaded."""

    manifest: int = 32 * 2**20
    """Bytes of a manifest."""
    files: int = 100_000
    """Objects of an upload."""
    file: int = 2**30
    """Bytes of one file."""
    upload: int = 100 * 2**30
    """Bytes of one upload."""
    run: int = 200 * 2**30
    """Bytes that one look downloads; the uploads beyond wait for the next."""


class Entry(BaseModel):
    """One file of an upload."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: StrictStr
    size: StrictInt = Field(ge=0)
    sha256: StrictStr = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """`manifest.json`, which the uploader writes last. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: StrictInt = Field(alias="schema", ge=1, le=1)
    dataset: StrictStr
    files: tuple[Entry, ...] = Field(min_length=1)
    module: StrictStr | None = None
    """Dataset module the uploader expects to read it: the dataset's own, or `generic`."""
    note: StrictStr = Field(default="", max_length=2000)
    partial: StrictBool = True
    """Whether the good files are taken when others are bad. False: all or nothing."""


def read_manifest(data: bytes, dataset: str) -> Manifest:
    """A manifest of an upload for `dataset`. ValueError: not JSON, a key or value too many, a name that may not be."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"{MANIFEST}: {_first(error)}") from None
    except RecursionError:
        raise ValueError(f"{MANIFEST}: nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are
        raise ValueError(f"{MANIFEST} cannot be read: {shown(str(error))}") from None
    if manifest.dataset != dataset:
        raise ValueError(f"{MANIFEST}: dataset {shown(manifest.dataset)}, but it lies in the folder of {dataset}")
    if manifest.module not in (None, module(dataset)):
        raise ValueError(f"{MANIFEST}: module {shown(manifest.module or '')}; {dataset} is read by {module(dataset)}")
    for entry in manifest.files:
        try:
            check_name(entry.path)
        except ValueError as error:
            raise ValueError(f"{MANIFEST}: {shown(entry.path)}: {error}") from None
    clashes = collisions([entry.path for entry in manifest.files])
    for path, reason in clashes.items():
        raise ValueError(f"{MANIFEST}: {shown(path)}: {reason}")
    return manifest


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, without the value: it may be long and hostile."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{shown(where)}: {first['msg']}" + (
        f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    )


def module(dataset: str) -> str:
    """The dataset module that reads `dataset`. ValueError: not an id, or a set without files of its own."""
    if paths.check_id(dataset) == "generic":
        raise ValueError("generic is a layout and no dataset: give the set an id of its own")
    name = dataset if dataset in datasets.names() else "generic"
    if not hasattr(datasets.load(name), "find"):
        raise ValueError(f"{dataset} has no files of its own to add")
    return name


def check_name(name: str) -> None:
    """ValueError with the reason when `name` may not be a file of an upload.

    More than `archives.safe_name`: one spelling only, no invisible characters, nothing that the layouts ignore.
    """
    if len(name.encode("utf-8", "surrogatepass")) > NAME_BYTES:
        raise ValueError(f"name of more than {NAME_BYTES} bytes")
    for character in name:
        kind = unicodedata.category(character)
        if kind[0] == "C" or (kind[0] == "Z" and character != " "):
            raise ValueError(f"name with the control or invisible character U+{ord(character):04X}")
    path = archives.safe_name(name)
    if path.as_posix() != name or unicodedata.normalize("NFC", name) != name:
        raise ValueError("name in an unusual spelling (backslashes, doubled slashes, single dots, or not Unicode NFC)")
    for part in path.parts:
        if part != part.strip() or part.endswith("."):
            raise ValueError("name with a space or dot at its edge")
        if part.startswith(".") or part.lower() in layout.IGNORED:
            raise ValueError("hidden or system file")
    if name == MANIFEST:
        raise ValueError("the manifest does not list itself")


def check_ending(name: str) -> None:
    """ValueError when a file is not called like an image, npy or safetensors.

    Contents decide what a file is; but no file may be called like something else either, as what reads the folder
    later goes by names (a list, a CSV, a dvc.yaml).
    """
    if layout.extension(name) not in ENDINGS:
        raise ValueError(
            "neither an image (jpg, png, tif, bmp, webp) nor npy or safetensors: other files of a layout come with "
            "`unforge data add`"
        )


def collisions(names: Iterable[str], there: Iterable[str] = ()) -> dict[str, str]:
    """Reason for each of `names` that cannot lie beside the earlier ones and those that are `there`.

    Names that differ only in case or in compatible characters are one file on some systems; nothing is both a
    file and a folder.
    """
    spelt: dict[str, str] = {}
    files: set[str] = set()
    folders: set[str] = set()
    reasons: dict[str, str] = {}
    for given, name in [*((False, n) for n in there), *((True, n) for n in names)]:
        parents = [parent.as_posix() for parent in PurePosixPath(name).parents][:-1]
        other = next((o for p in (name, *parents) if (o := spelt.get(_folded(p), p)) != p), None)
        reason = ""
        if other is not None:
            reason = f"differs only in case or form from {shown(other)}"
        elif name in folders or files & set(parents):
            reason = "a file and a folder of one name"
        elif name in files:
            reason = "listed twice"
        if reason and given:
            reasons[name] = reason
        elif not reason:
            files.add(name)
            folders |= set(parents)
            spelt |= {_folded(part): part for part in (name, *parents)}
    return reasons


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def beyond(sizes: Mapping[str, int], limits: Limits) -> str:
    """Why an upload with files of these sizes (bytes) is not looked at; empty when it may be."""
    if len(sizes) > limits.files:
        return f"more than {limits.files} objects"
    if sum(sizes.values()) > limits.upload:
        return f"{sum(sizes.values())} bytes: more than {limits.upload} are not taken"
    return ""


def shown(text: str, most: int = 200) -> str:
    """Hostile text in quotes for people: printable ASCII, what else there is escaped, at most `most` characters."""
    safe = text.encode("ascii", "backslashreplace").decode()
    safe = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in safe)
    return f"'{safe[:most]}...'" if len(safe) > most else f"'{safe}'"


def key(name: str) -> str:
    """Any object name as a harmless key that no other name becomes: what is not a letter, digit or `-_.~` escaped."""
    parts = [quote(part.encode("utf-8", "surrogatepass"), safe="") or "%" for part in name.split("/")]
    safe = "/".join(part.replace(".", "%2E") if not part.strip(".") else part for part in parts)
    return safe if len(safe) <= 600 else "%" + hashlib.sha256(safe.encode()).hexdigest()


def check_file(path: Path) -> None:
    """ValueError with the reason when a file's content is not what its name says: image, npy or safetensors."""
    kind = ENDINGS.get(layout.extension(path.name), "")
    check = {"image": _image, "npy": _npy, "safetensors": _safetensors}.get(kind)
    if check is None:
        return check_ending(path.name)
    try:
        check(path)
    except ValueError:
        raise
    except Exception as error:  # parsers of hostile bytes raise anything
        raise ValueError(f"cannot be read as {kind} ({type(error).__name__}: {shown(str(error))})") from None


def _image(path: Path) -> None:
    from unforge import shards

    if path.stat().st_size > Limits.file:
        raise ValueError(f"more than {Limits.file} bytes")
    shards.decode_image(path.read_bytes())


def _npy(path: Path) -> None:
    import numpy as np

    with open(path, "rb") as file:
        if file.read(len(NPY)) != NPY:
            raise ValueError("not an npy file")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8 or array.ndim > 8:
        raise ValueError(f"array of {shown(str(array.dtype))} with {array.ndim} dimensions: numbers in at most 8 only")
    if array.size == 0:
        raise ValueError("empty array")
    if path.stat().st_size != array.offset + array.nbytes:
        raise ValueError(f"{path.stat().st_size - array.offset - array.nbytes} bytes more than its header says")


def _safetensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:  # checks lengths, offsets and that nothing lies between
        if not list(file.keys()):
            raise ValueError("no tensors")


@contextmanager
def checker(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[Callable[[Path], str]]:
    """A function that gives the reason why a file is bad, or an empty text: `check_file` in a child process.

    The child has no credentials, may write nothing, and is ended after `seconds` at one file. RuntimeError when
    it cannot be started, which is no file's fault.
    """
    child: subprocess.Popen[str] | None = None

    def answer(what: str) -> str | None:
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError):
            child.stdin.write(what)
            child.stdin.flush()
        ready, _, _ = select.select([child.stdout], [], [], seconds)
        return child.stdout.readline() if ready else None

    def check(path: Path) -> str:
        nonlocal child
        if child is None:
            child = _start(memory)
            if answer("\n") != f"{READY}\n":
                end()
                raise RuntimeError(f"the process that checks files did not start: {sys.executable} -P {__file__}")
        line = answer(json.dumps(str(path)) + "\n")
        if line is None or not line.endswith("\n"):
            end()
            return f"takes its decoder more than {seconds:.0f} s" if line is None else "crashes its decoder"
        return str(json.loads(line))

    def end() -> None:
        nonlocal child
        if child is not None:
            child.kill()
            child.communicate()
            child = None

    try:
        yield check
    finally:
        end()


def _start(memory: int) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_"))}
    return subprocess.Popen(
        [sys.executable, "-P", __file__, str(memory)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        bufsize=1,
    )


def _serve(memory: int) -> None:
    """The child: a path a line in, a reason a line out. Ends with its parent, whose end closes the pipe."""
    from safetensors import safe_open  # noqa: F401  imported before a file can be blamed for what it takes

    from unforge import shards  # noqa: F401

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    sys.stdin.readline()
    print(READY, flush=True)
    for line in sys.stdin:
        try:
            check_file(Path(json.loads(line)))
            reason = ""
        except ValueError as error:
            reason = str(error)[:1000] or "unreadable"
        print(json.dumps(reason), flush=True)


def write_manifest(folder: Path, dataset: str, note: str = "", whole: bool = False) -> tuple[Manifest, dict[str, str]]:
    """Write `manifest.json` into a folder that is to be uploaded; the manifest, and the files that will be refused.

    ValueError: nothing in the folder, a link, or a name that may not be.
    """
    module(dataset)
    names = [name for name in layout.files(folder) if name != MANIFEST]
    entries, refused = [], {}
    with checker() as check:
        for name in names:
            path = folder / name
            if path.is_symlink() or not path.is_file():
                raise ValueError(f"{path} is a link or no regular file: put a copy there")
            entries.append({"path": name, "size": path.stat().st_size, "sha256": paths.sha256(path)})
            if reason := check(path):
                refused[name] = reason
    value = {"schema": 1, "dataset": dataset, "files": entries, "note": note, "partial": not whole}
    text = json.dumps(value, indent=1, ensure_ascii=True) + "\n"
    manifest = read_manifest(text.encode(), dataset)
    with paths.writing_file(folder / MANIFEST) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return manifest, refused


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
