"""What the watch downloaded joins the dataset in `data/raw/`: files are added, none is changed, and all at once.

The set that results is built and examined beside the old one, by what `unforge data add` uses, and put in its
place by renaming. Killed at any point, `recover` brings back what was there.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flows.incoming import uploads
from flows.incoming.inbox import STATE, LeftError
from unforge import datasets, paths
from unforge.datasets import add, ingest, layout

PENDING = STATE / "pending.json"
INCOMING = Path("data/raw/.incoming")
"""Downloads on their way into a dataset. Hidden, ignored by git, and on the disk of the datasets."""
FILES, TREE, MADE, OLD = "files", "tree", "made", "old"
"""Parts of a download's folder: what came, with it what is there, the set made of that, and the one it replaces."""
MARGIN = 64 * 2**20


@dataclass(frozen=True)
class Merged:
    """What a merge did."""

    text: str = ""
    taken: int = 0
    there: int = 0
    """Files that were there before, with the same bytes."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Reason by file that cannot lie beside what is there."""


def folder(dataset: str, upload: str) -> str:
    """Name of an upload's folder below `INCOMING`."""
    return f"{uploads.key(dataset)}~{uploads.key(upload)}"


def recover(root: Path, open_: Iterable[str] = ()) -> None:
    """Undo what a killed merge left half done, and drop the downloads of all uploads but the `open_` ones."""
    for work in sorted((root / INCOMING).glob("*")):
        target = root / paths.raw(work.name.partition("~")[0])
        if (work / OLD).is_dir() and not target.exists():
            os.rename(work / OLD, target)
        for part in (TREE, MADE, OLD) if work.name in set(open_) else ("",):
            shutil.rmtree(work / part, ignore_errors=True)


def check_space(root: Path, dataset: str, size: int) -> None:
    """OSError when the disk has no room for `size` bytes of downloads and for the set that is made with them."""
    raw = root / paths.raw(dataset)
    there = sum(path.stat().st_size for path in raw.rglob("*") if path.is_file())
    (root / INCOMING).mkdir(parents=True, exist_ok=True)
    free, need = shutil.disk_usage(root / INCOMING).free, 2 * size + there + MARGIN
    if free < need:
        raise OSError(errno.ENOSPC, f"{raw} needs {need} bytes for a while, {free} are free")


def prepare(root: Path, dataset: str, upload: str, manifest: str) -> Path:
    """The folder of an upload's downloads, with what an interrupted look left there for the same `manifest` (ETag)."""
    work = root / INCOMING / folder(dataset, upload)
    stamp = work / "manifest"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != manifest:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        stamp.write_text(manifest, encoding="utf-8")
    return work


def drop(root: Path, dataset: str, upload: str) -> None:
    """Remove an upload's downloads."""
    shutil.rmtree(root / INCOMING / folder(dataset, upload), ignore_errors=True)


def present(root: Path, dataset: str) -> dict[str, Path]:
    """Files of the real set in `data/raw/`, by path; none where the stand-in is used.

    LeftError when the set is called real and its files are not here: a clone knows of them, and has none.
    """
    raw = root / paths.raw(dataset)
    source = paths.read_json(raw / "SOURCE.json") if (raw / "SOURCE.json").is_file() else {}
    if source.get("source") != "real":
        return {}
    if not (raw / "files").is_dir():
        raise LeftError(f"{raw} is called real and has no files here: `unforge data add {dataset}` brings them first")
    return {name: raw / "files" / name for name in layout.files(raw / "files")}


def merge(
    root: Path,
    dataset: str,
    work: Path,
    files: Mapping[str, str],
    *,
    missing: Iterable[str] = (),
    whole: bool = False,
    progress: Callable[..., Any] | None = None,
) -> Merged:
    """Add the `files` (SHA-256 by path) that lie in `work` to a dataset, and remember that it is to be reproduced.

    A name that is there with other bytes is refused, or with `whole` the lot. ValueError: no set of that layout
    comes of it, what is there would no longer be used as it is, or an image would be taken for something else
    because of the `missing` files that belong to the upload and are not taken (a mask, a list).
    """
    there = present(root, dataset)
    refused = uploads.collisions([name for name in files if name not in there], there)
    same = {name for name in files if name in there and paths.sha256(there[name]) == files[name]}
    refused |= {
        name: "a file of this name is there, with other contents" for name in files if name in there if name not in same
    }
    if refused and whole:
        raise ValueError(f"all or nothing (partial: false), and {len(refused)} files clash with what is there")
    fresh = {name: work / FILES / name for name in files if name not in there and name not in refused}
    if not fresh:
        return Merged("Nothing that is not there already.", 0, len(same), refused)
    for part in (TREE, MADE):
        shutil.rmtree(work / part, ignore_errors=True)
    for name, path in {**there, **fresh}.items():
        _link(path, work / TREE / name)
    usable = _usable(_rows(root, dataset, there))
    report = add.add(dataset, work / TREE, work / MADE, progress=progress)
    _check_unchanged(usable, report.rows)
    _check_meant({**there, **fresh}, {*missing, *refused} - set(there), set(fresh), report)
    if not set(fresh) & {row[column] for row in report.rows for column in ("source_image", "source_mask")}:
        expected = datasets.load(report.module).CARD.layout
        raise ValueError(f"no file has a place in the layout of {dataset}, which is: {expected}")
    _remember(root, dataset)
    _swap(root / paths.raw(dataset), work / MADE / paths.raw(dataset), work / OLD)
    text = f"{dataset} has {report.total('ok') + report.total('flagged')} usable images now"
    text += f", {report.total('rejected')} rejected" if report.total("rejected") else ""
    first = [] if there else ["its stand-in is used no more (SOURCE.json says so: commit it)"]
    return Merged("; ".join([text, *first, *report.problems]) + ".", len(fresh), len(same), refused)


def _link(source: Path, target: Path) -> None:
    """The same file under another name: a link, which costs nothing, or a copy where disks do not link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _rows(root: Path, dataset: str, there: Mapping[str, Path]) -> list[dict[str, Any]]:
    """What was found in the set that is there when it was added."""
    import pyarrow.parquet as pq

    raw = root / paths.raw(dataset)
    if not there:
        return []
    if (raw / "rows.parquet").is_file():
        rows: list[dict[str, Any]] = pq.read_table(raw / "rows.parquet").to_pylist()
        return rows
    return add.check(dataset, raw / "files").rows


def _usable(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Mask, label and kind of each image that is used."""
    used = [row for row in rows if row["status"] != "rejected"]
    return {row["source_image"]: (row["source_mask"], row["label"], row["kind"]) for row in used}


def _check_unchanged(before: Mapping[str, tuple[str, ...]], rows: list[dict[str, Any]]) -> None:
    """ValueError when images would lose their place or mask: an upload may add, not alter."""
    after = _usable(rows)
    spoilt = sorted(image for image, what in before.items() if after.get(image) != what)
    if spoilt:
        reason = (
            next((row["reason"] for row in rows if row["source_image"] == spoilt[0]), "") or "another mask or label"
        )
        raise ValueError(
            f"{len(spoilt)} images that are there would be used otherwise or no longer, {uploads.shown(spoilt[0])} "
            f"({reason}): `unforge data add` replaces a set"
        )


def _check_meant(files: Mapping[str, Path], missing: set[str], fresh: set[str], report: add.Report) -> None:
    """ValueError when a fresh image is used otherwise than it would be with the missing files.

    Layouts go by names: so they are asked again, with empty files in place of the missing ones.
    """
    if not missing:
        return
    found = {image: what for image, what in _usable(report.rows).items() if image in fresh}
    with TemporaryDirectory() as folder:
        for name in (*files, *missing):
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in files:
                path.symlink_to(files[name].resolve())
            else:
                path.touch()
        try:
            rows = [
                ingest.record(row, Path(folder), row.status, row.reason)
                for row in datasets.load(report.module).find(Path(folder))
            ]
        except ValueError as error:
            raise ValueError(f"the layout needs a file that is not taken: {error}") from None
    meant = _usable(rows)
    otherwise = sorted(image for image, what in found.items() if meant.get(image) != what)
    if otherwise:
        raise ValueError(
            f"{len(otherwise)} images would be used otherwise than with the files that are not taken, "
            f"{uploads.shown(otherwise[0])} among them"
        )


def _swap(target: Path, made: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        os.rename(target, old)
    os.rename(made, target)
    shutil.rmtree(old, ignore_errors=True)


def pending(root: Path) -> list[str]:
    """Datasets that were added to and not yet reproduced."""
    return list(paths.read_json(root / PENDING)) if (root / PENDING).is_file() else []


def _remember(root: Path, dataset: str) -> None:
    """Before a dataset is replaced: whatever ends this process, the next look reproduces what it touches."""
    with paths.writing_file(root / PENDING) as temporary:
        paths.write_json(temporary, sorted({*pending(root), dataset}))
