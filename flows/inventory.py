"""What a team's store has of the outputs that the locks name, and what this machine has.

The store is listed anew each time, with sizes: DVC's own index of a remote believes what was there once, and
takes a folder for whole when its list of files is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows import restricted, walk

JOBS = 16
SHOWN = 12


@dataclass
class Store:
    """A repository and its team's store, open."""

    root: Path
    repo: Any
    cache: Any
    """DVC's object stores: here, and there."""
    odb: Any
    place: str

    @property
    def runs(self) -> str:
        """Folder of the run-cache entries, in the store."""
        return str(self.odb.fs.join(self.odb.path.removesuffix("/files/md5"), "runs"))


@dataclass(frozen=True)
class Output:
    """One output that a lock names and DVC's cache keeps. What git keeps (small tables) is not among them."""

    stage: str
    path: str
    bytes: int
    """By the lock; -1 where an old one does not say."""
    files: tuple[str, ...] | None
    """Hash of each of its files; None while neither side has a folder's list of files."""
    folder: str
    """Hash of a folder's list of files; empty for a single file."""
    held: str
    """Why it is held back; empty when it is not."""
    out: Any = field(repr=False, compare=False)
    """DVC's own object."""

    @property
    def kind(self) -> str:
        """Kind of its stage: the first word of the stage's name."""
        return re.split(r"[-_.]", self.stage.rpartition(":")[2])[0]

    @property
    def objects(self) -> list[str]:
        """Hashes of its objects, each once, the list of files last."""
        return [*dict.fromkeys(self.files or ()), *([self.folder] if self.folder else [])]

    def whole(self, sizes: dict[str, int]) -> bool:
        """Whether all of it is among objects of these sizes."""
        if self.files is None or not all(o in sizes for o in self.objects):
            return False
        return self.bytes < 0 or sum(sizes[f] for f in self.files) == self.bytes


@dataclass(frozen=True)
class Plan:
    """What is where, before anything moves."""

    place: str
    outputs: list[Output]
    here: dict[str, int]
    """Bytes of the outputs' objects in this machine's cache."""
    there: dict[str, int]
    """Bytes of the outputs' objects in the store."""
    runs: dict[str, str]
    """Run-cache entry of each stage, as a path below the cache."""
    runs_here: frozenset[str]
    runs_there: frozenset[str]
    not_run: list[str]
    """Stages that no lock knows."""

    def state(self, output: Output) -> str:
        """`shared`, `push` (whole here only), `pull` (whole there only) or `missing` (whole on neither side)."""
        here, there = output.whole(self.here), output.whole(self.there)
        if here:
            return "shared" if there and not self.lacks(output) else "push"
        return "pull" if there else "missing"

    def lacks(self, output: Output) -> dict[str, int]:
        """Objects of an output that are here, and not there or not with the same size; their bytes."""
        return {o: self.here[o] for o in output.objects if o in self.here and self.there.get(o) != self.here[o]}

    def group(self, *states: str) -> list[Output]:
        """Outputs in one of these states, without those held back."""
        return [o for o in self.outputs if not o.held and self.state(o) in states]

    def damaged(self) -> list[Output]:
        """Outputs of which the store has every object, but not with the bytes that the lock tells."""
        found = [o for o in self.outputs if o.files is not None and all(x in self.there for x in o.objects)]
        return [o for o in found if not o.whole(self.there)]

    def to_push(self) -> dict[str, int]:
        """Objects that a push sends, each once, and their bytes."""
        return {key: size for o in self.group("push") for key, size in self.lacks(o).items()}

    def to_pull(self) -> dict[str, int]:
        """Objects that a pull fetches (also of held-back outputs that somebody shared), each once, and their bytes."""
        wanted = [o for o in self.outputs if self.state(o) == "pull"]
        return {key: self.there[key] for o in wanted for key in o.objects if key not in self.here}

    def complete(self) -> bool:
        """Whether both sides have all that is not held back."""
        return not self.not_run and not self.group("push", "pull", "missing")


def make_plan(store: Store, targets: Iterable[str] = (), upstream: bool = True, everything: bool = False) -> Plan:
    """What the locks name, on both sides.

    `targets` as `walk.resolve` takes them, with all they need (or without: `upstream` false); default: all.
    `everything`: nothing is held back. Raises ValueError on an unknown target.
    """
    repo, targets = store.repo, list(targets)
    with repo.lock:  # a stage that runs may be writing its lock
        graph, locks = repo.index.graph, _locks(repo)
    names = {stage: walk.address(store.root, stage) for stage in graph}
    edges = {names[s]: frozenset(names[u] for u in graph.successors(s)) for s in graph}
    wanted = set(edges)
    if targets:
        chosen = walk.resolve(walk.Graph(edges, frozenset()), targets)
        wanted = walk.Graph(edges, frozenset()).ancestors(chosen) if upstream else set(chosen)
    closed = {} if everything else restricted.of(repo)
    found, not_run = [], []
    for stage in sorted((s for s in graph if names[s] in wanted), key=names.__getitem__):
        outs = [o for o in stage.outs if o.protocol == "local" and o.use_cache and not stage.is_repo_import]
        if not all(o.hash_info for o in stage.outs):
            not_run.append(names[stage])
        found += [(names[stage], o) for o in outs if o.hash_info]
    lists = _lists(store, [o.hash_info.value for _, o in found if o.hash_info.isdir])
    outputs = []
    for name, out in found:
        path = Path(out.fs_path).relative_to(store.repo.root_dir).as_posix()
        value, size = out.hash_info.value, out.meta.size
        held = closed.get(path, "") or ("" if out.can_push else "marked push: false in dvc.yaml")
        outputs.append(
            Output(
                name, path, -1 if size is None else size, lists[value] if out.hash_info.isdir else (value,),
                value if out.hash_info.isdir else "", held, out,
            )
        )  # fmt: skip
    runs = _runs(locks, {o.stage: o.out.stage for o in outputs})
    return Plan(store.place, outputs, runs=runs, not_run=not_run, **_where(store, outputs, runs))


def _where(store: Store, outputs: list[Output], runs: dict[str, str]) -> dict[str, Any]:
    """The fields of a plan that say what is where."""
    objects = {key for o in outputs for key in o.objects}
    cache = Path(store.repo.stage_cache.cache_dir)
    there = store.odb.fs.exists([f"{store.runs}/{run}" for run in runs.values()]) if runs else []
    return {
        "here": _here(store, objects),
        "there": _there(store, objects),
        "runs_here": frozenset(run for run in runs.values() if (cache / run).is_file()),
        "runs_there": frozenset(run for run, found in zip(runs.values(), there, strict=True) if found),
    }


def _lists(store: Store, folders: list[str]) -> dict[str, tuple[str, ...] | None]:
    """Hashes of the files of each folder, from its list here or there; None where neither has it (undamaged)."""
    data: dict[str, bytes] = {}
    for folder in folders:
        with suppress(FileNotFoundError):
            data[folder] = Path(store.cache.oid_to_path(folder)).read_bytes()
    asked = {store.odb.oid_to_path(folder): folder for folder in folders if folder not in data}
    if asked:
        for path, answer in store.odb.fs.fs.cat(list(asked), on_error="return").items():
            if isinstance(answer, bytes):
                data[asked[path]] = answer
            elif not isinstance(answer, FileNotFoundError):
                raise answer
    good = {f: d for f, d in data.items() if hashlib.md5(d, usedforsecurity=False).hexdigest() == f.split(".")[0]}
    return {f: tuple(entry["md5"] for entry in json.loads(good[f])) if f in good else None for f in folders}


def _here(store: Store, objects: Iterable[str]) -> dict[str, int]:
    sizes = {}
    for key in objects:
        with suppress(FileNotFoundError):
            sizes[key] = os.stat(store.cache.oid_to_path(key)).st_size
    return sizes


def _there(store: Store, objects: set[str]) -> dict[str, int]:
    """Bytes of those objects that the store has. It is asked, never DVC's index of what was there once."""
    fs, base = store.odb.fs.fs, store.odb.path
    fs.invalidate_cache()

    def listed(prefix: str) -> dict[str, int]:
        found = fs.find(f"{base}/{prefix}", detail=True)
        return {prefix + name.rpartition("/")[2]: int(info["size"]) for name, info in found.items()}

    sizes: dict[str, int] = {}
    with ThreadPoolExecutor(JOBS) as pool:
        for found in pool.map(listed, sorted({key[:2] for key in objects})):
            sizes |= {key: size for key, size in found.items() if key in objects}
    return sizes


def _locks(repo: Any) -> dict[str, dict[str, Any]]:
    """The lock entries of each dvc.yaml, by its path."""
    from dvc.utils.serialize import load_yaml

    files = {stage.path for stage in repo.index.stages if getattr(stage, "name", None)}
    locks = {file: Path(file).with_name("dvc.lock") for file in files}
    return {file: load_yaml(str(lock)).get("stages", {}) for file, lock in locks.items() if lock.is_file()}


def _runs(locks: dict[str, dict[str, Any]], stages: dict[str, Any]) -> dict[str, str]:
    """Run-cache entry of each stage as the lock has it; none for what DVC makes no entry for: stages without
    dependencies, and those with outputs that git keeps."""
    from dvc.stage.cache import _get_cache_hash

    entries = {}
    for address, stage in stages.items():
        lock = locks.get(stage.path, {}).get(getattr(stage, "name", ""))
        if lock and lock.get("deps") and all(out.use_cache for out in stage.outs):
            key, value = _get_cache_hash(dict(lock), key=True), _get_cache_hash(dict(lock))
            entries[address] = f"{key[:2]}/{key}/{value}"
    return entries


def refreshed(store: Store, plan: Plan) -> Plan:
    """The plan with what is where now."""
    return replace(plan, **_where(store, plan.outputs, plan.runs))


def size(count: int) -> str:
    """Bytes for people, in decimal units."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def describe(plan: Plan) -> str:
    """The plan for people: a table by kind of stage, then what is not on both sides, and what is held back."""
    columns = ("outputs", "files", "bytes", "shared", "only here", "only there", "missing", "held back")
    lines = [plan.place, f"{'kind':<10}" + "".join(f"{name:>11}" for name in columns)]
    kinds = {kind: [o for o in plan.outputs if o.kind == kind] for kind in sorted({o.kind for o in plan.outputs})}
    for kind, outputs in [*kinds.items(), ("total", plan.outputs)]:
        states = [plan.state(o) for o in outputs if not o.held]
        counts = [len(outputs), sum(len(o.files or ()) for o in outputs), size(sum(max(0, o.bytes) for o in outputs))]
        counts += [states.count(state) for state in ("shared", "push", "pull", "missing")]
        counts.append(len(outputs) - len(states))
        lines.append(f"{kind:<10}" + "".join(f"{count:>11}" for count in counts))
    push, pull = plan.to_push(), plan.to_pull()
    lines += _section(f"only here: `unforge share push` sends {_objects(push)}", plan.group("push"))
    lines += _section(f"only there: `unforge share pull` fetches {_objects(pull)}", plan.group("pull"))
    cure = "whole on neither side: whoever has it pushes it, or `unforge reproduce` makes it"
    lines += _section(cure, plan.group("missing"))
    cure = "damaged in the store (objects of another size): whoever has them pushes them again, that replaces them"
    lines += _section(cure, plan.damaged())
    held = [o for o in plan.outputs if o.held]
    lines += _section("held back: --include-restricted sends it to people who may have it", held, plan)
    if plan.not_run:
        names = ", ".join(plan.not_run[:SHOWN]) + (", …" if len(plan.not_run) > SHOWN else "")
        lines.append(f"in no lock, not run yet or dropped by a merge: {names}; `unforge reproduce` runs them")
    lines.append(f"run-cache: {len(plan.runs_there)} of {len(plan.runs)} stages can be restored without their lock")
    return "\n".join(lines)


def _objects(sizes: dict[str, int]) -> str:
    return f"{len(sizes)} objects, {size(sum(sizes.values()))}"


def _section(title: str, outputs: list[Output], plan: Plan | None = None) -> list[str]:
    """A title and the outputs; with their reasons if `plan` is given (then all of them)."""
    shown = outputs if plan else sorted(outputs, key=lambda o: (-o.bytes, o.path))[:SHOWN]
    lines = []
    for output in shown:
        text = f"  {output.path} ({size(max(0, output.bytes))})"
        if plan:
            text += f": {output.held}" + ("; somebody has shared it" if output.whole(plan.there) else "")
        lines.append(text)
    if len(outputs) > len(shown):
        lines.append(f"  and {len(outputs) - len(shown)} more (--json has all)")
    return [title + ":", *lines] if outputs else []


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan for programs; sizes in bytes."""
    damaged = {o.path for o in plan.damaged()}
    outputs = [
        {
            "stage": o.stage,
            "kind": o.kind,
            "path": o.path,
            "files": None if o.files is None else len(o.files),
            "bytes": o.bytes,
            "state": plan.state(o),
            "damaged": o.path in damaged,
            "held_back": o.held or None,
        }
        for o in plan.outputs
    ]
    push, pull = plan.to_push(), plan.to_pull()
    return {
        "place": plan.place,
        "complete": plan.complete(),
        "push": {"objects": len(push), "bytes": sum(push.values())},
        "pull": {"objects": len(pull), "bytes": sum(pull.values())},
        "run_cache": {"stages": len(plan.runs), "here": len(plan.runs_here), "there": len(plan.runs_there)},
        "not_run": plan.not_run,
        "outputs": outputs,
    }
