"""`unforge data list|check|add`: look at real datasets and put them where the pipeline finds them."""

from __future__ import annotations

import difflib
import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unforge import datasets, paths
from unforge.datasets import archives, generated, ingest, layout
from unforge.videos import Clips, reading

if TYPE_CHECKING:
    import pyarrow as pa

GENERIC = "generic"
SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Report:
    """What lies at a source, seen as a dataset."""

    dataset: str
    module: str
    """Dataset module used: the id, or `generic`."""
    rows: list[dict[str, Any]] = field(repr=False)
    """One row (`shards.ROWS`) per image found, and per archive member refused."""
    expected: Mapping[str, int]
    """Published counts by kind (empty for a user's own images)."""
    missing: tuple[str, ...]
    """Files of the official set that are not there, where their names are known."""
    unused: tuple[str, ...]
    """Image files that the layout gives no role: other masks, copies, strays."""

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of rows by kind and status."""
        table: dict[str, dict[str, int]] = {}
        for (kind, status), count in sorted(
            Counter((row["kind"] or "file", row["status"]) for row in self.rows).items()
        ):
            table.setdefault(kind, {})[status] = count
        return table

    def total(self, status: str) -> int:
        """Number of rows that are `ok`, `flagged` or `rejected`."""
        return sum(row["status"] == status for row in self.rows)

    @property
    def problems(self) -> tuple[str, ...]:
        """What differs from the published set, in sentences."""
        lines = []
        for kind, count in self.expected.items():
            here = sum(row["kind"] == kind for row in self.rows)
            if here != count:
                lines.append(f"{kind}: {here} images found, {count} published")
        if self.missing:
            lines.append(f"{len(self.missing)} files of the official set are not there: {_some(self.missing)}")
        return tuple(lines)

    def summary(self) -> dict[str, Any]:
        """The same for programs: numbers by status and by kind, and what differs."""
        totals = {status: self.total(status) for status in ("ok", "flagged", "rejected")}
        differences = {"problems": self.problems, "missing": self.missing, "unused": self.unused}
        return {"dataset": self.dataset, "module": self.module, **totals, "counts": self.counts, **differences}

    def table(self) -> pa.Table:
        """The rows, sorted, as a table with the columns of `shards.ROWS` (`--rows`)."""
        import pyarrow as pa

        from unforge import shards

        rows = sorted(self.rows, key=lambda row: tuple(row[name] for name in shards.ROWS.names))
        return pa.Table.from_pylist(rows, schema=shards.ROWS)

    def text(self) -> str:
        """Summary for people: counts, differences, reasons with their numbers."""
        lines = [
            f"{self.dataset} (module {self.module}): {len(self.rows)} found = {self.total('ok')} ok + "
            f"{self.total('flagged')} flagged + {self.total('rejected')} rejected"
        ]
        for kind, statuses in self.counts.items():
            lines.append(f"  {kind}: " + ", ".join(f"{count} {status}" for status, count in statuses.items()))
        lines += [f"  differs: {problem}" for problem in self.problems]
        for row in [row for row in self.rows if row["status"] != "ok"][:SHOWN]:
            lines.append(f"  {row['status']}: {row['source_image']}: {row['reason']}")
        hidden = len(self.rows) - self.total("ok") - SHOWN
        if hidden > 0:
            lines.append(f"  and {hidden} more (--rows FILE.parquet has all)")
        if self.unused:
            lines.append(f"  {len(self.unused)} image files have no role in the layout: {_some(self.unused)}")
        return "\n".join(lines)


def check(dataset: str, source: str | Path, *, progress: ingest.Progress | None = None) -> Report:
    """Look at everything at `source` as `dataset`, copying nothing into the project.

    `source` is a directory, a zip or tar archive, or `s3://bucket/prefix`; `dataset` one of
    `datasets.names()`, `generated/<model>`, or an id of your own (then the generic layout is expected).
    `progress(done, total)`. ValueError: not an id, no such source, or a layout in which no image is found (says
    what was expected).
    """
    dataset = generated.dataset_id(dataset)
    with archives.opened(source) as (folder, refused):
        return _examine(dataset, folder, refused, progress)


def add(dataset: str, source: str | Path, root: Path = Path("."), *, progress: ingest.Progress | None = None) -> Report:
    """`check`, then copy the files, byte for byte, to `data/raw/<dataset>/` of the project at `root`.

    Writes `files/`, `rows.parquet` and `SOURCE.json` {source: real, module, version, manifest_sha256 (of
    paths and hashes of all files), counts, missing}, all at once or not at all; what was there before is
    replaced. ValueError as for `check`, and when no image is usable.
    """
    import pyarrow.parquet as pq

    dataset = generated.dataset_id(dataset)
    target = Path(root) / paths.raw(paths.check_id(dataset))
    target.parent.mkdir(parents=True, exist_ok=True)
    inside = not str(source).startswith("s3://") and target.resolve() in (
        Path(source).resolve(),
        *Path(source).resolve().parents,
    )
    if inside:
        raise ValueError(f"{source} is where {dataset} would be written to: give the original")
    with archives.opened(source, scratch=target.parent) as (folder, refused):
        report = _examine(dataset, folder, refused, progress)
        if report.total("ok") + report.total("flagged") == 0:
            raise ValueError(f"no usable image in {source}:\n{report.text()}")
        with paths.writing(target) as temporary:
            manifest = [_copy(folder / path, temporary / "files" / path, path) for path in layout.files(folder)]
            pq.write_table(report.table(), temporary / "rows.parquet")
            description = {
                "source": "real",
                "module": report.module,
                "version": datasets.load(report.module).VERSION,
                "manifest_sha256": paths.digest(manifest),
                "counts": report.counts,
                "missing": list(report.missing),
            }
            paths.write_json(temporary / "SOURCE.json", description)
    return report


def list_(root: Path = Path(".")) -> list[dict[str, Any]]:
    """One dict per dataset, sorted by id: `id`, `name`, `status`, `images` (published counts by kind),
    `licence`, `redistribute`, `source`, `layout`, `defects`, `counts` (of an added real set, else None).

    `status` is `real` (added), `stand_in` (made from photographs of packages), `absent`, `package`
    (installed photographs, and views of them), `sampled` (by small models; `generated/<model>` can be added) or
    `protocol`. A user's own sets, and generated ones that were added, follow under their ids.
    """
    added = {path.parent.name for path in (Path(root) / "data/raw").glob("*/SOURCE.json")}
    own = sorted(name for name in added - set(datasets.names()) if paths.ID.fullmatch(name))
    return [_entry(name, Path(root)) for name in [*(name for name in datasets.names() if name != GENERIC), *own]]


def _entry(name: str, root: Path) -> dict[str, Any]:
    module = _loaded(name)
    path = root / paths.raw(name) / "SOURCE.json"
    source = paths.read_json(path) if path.is_file() else {}
    if hasattr(module, "MEMBERS"):
        status = "protocol"
    elif not hasattr(module, "find"):
        status = "package"
    elif module is generated and not source:
        status = "sampled"
    else:
        status = source.get("source", "absent")
    card = module.CARD
    return {
        "id": name,
        "name": card.name if name in datasets.names() else name,
        "status": status,
        "images": dict(card.images),
        "licence": card.licence,
        "redistribute": card.redistribute,
        "source": card.source,
        "layout": card.layout,
        "defects": list(card.defects),
        "counts": source.get("counts"),
    }


def _module(dataset: str) -> ModuleType:
    """The dataset's module, if it has files to add. ValueError when it has none, or `dataset` is no id."""
    paths.check_id(dataset)
    module = _loaded(dataset)
    if not hasattr(module, "find"):
        raise ValueError(f"{dataset} has no files of its own to add: {module.CARD.layout}")
    return module


def _loaded(dataset: str) -> ModuleType:
    """The dataset's module: `generated` for those of a model, `generic` for a user's own id."""
    if generated.model(dataset):
        return generated
    return datasets.load(dataset if dataset in datasets.names() else GENERIC)


def _examine(dataset: str, folder: Path, refused: list[dict[str, Any]], progress: ingest.Progress | None) -> Report:
    module = _module(dataset)
    rows: list[dict[str, Any]] = []
    origin = generated.model(dataset)
    if origin:
        found = generated.read(origin, folder, rows, progress=progress)
    else:
        read = reading.read if isinstance(getattr(module, "STAND_IN", None), Clips) else ingest.read
        found = read(module, folder, rows, progress=progress)
    for _ in found:
        pass
    if not rows:
        raise ValueError(_wrong_layout(dataset, module, folder, refused))
    used = {row["source_image"] for row in rows} | {row["source_mask"] for row in rows}
    missing = module.missing(folder) if hasattr(module, "missing") else []
    return Report(
        dataset=dataset,
        module=module.__name__.rsplit(".", 1)[-1],
        rows=[*rows, *refused],
        expected=module.CARD.images,
        missing=tuple(missing),
        unused=tuple(path for path in layout.files(folder) if layout.is_image(path) and path not in used),
    )


def _wrong_layout(dataset: str, module: ModuleType, folder: Path, refused: list[dict[str, Any]]) -> str:
    listing = layout.files(folder)
    folders = Counter(path.rsplit("/", 1)[0] if "/" in path else "." for path in listing)
    there = ", ".join(f"{name} ({count} files)" for name, count in sorted(folders.items())[:SHOWN]) or "nothing"
    known = [name for name in datasets.names() if name != dataset]
    near = difflib.get_close_matches(dataset, known, n=3)
    lines = [f"no image of {dataset} found.", f"expected: {module.CARD.layout}", f"there: {there}"]
    lines += [f"refused: {row['source_image']}: {row['reason']}" for row in refused[:SHOWN]]
    if dataset not in datasets.names() and near:
        lines.append(f"{dataset} is taken for a set of your own; did you mean {' or '.join(near)}?")
    return "\n".join(lines)


def _copy(source: Path, target: Path, name: str) -> list[Any]:
    """Copy one file; [name, size, SHA-256] of what was written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with open(source, "rb") as original, open(target, "wb") as copy:
        while chunk := original.read(archives.CHUNK):
            digest.update(chunk)
            size += len(chunk)
            copy.write(chunk)
    shutil.copymode(source, target)
    target.chmod(0o644)
    return [name, size, digest.hexdigest()]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
