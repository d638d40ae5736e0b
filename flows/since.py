"""What changed since a git revision: stages whose definition, dependencies or parameter values did, and all that
follows from them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from flows import walk


@dataclass(frozen=True)
class Definition:
    """A stage as dvc.yaml has it at one revision."""

    text: dict[str, Any]
    values: dict[str, Any]
    """Parameter values by file."""
    hashes: dict[str, Any]
    """Hash of each dependency as dvc.lock has it, by path."""


def wanted(root: Path, graph: walk.Graph, targets: Iterable[str] = (), since: str | None = None) -> list[str]:
    """Stages that a user asked for: `targets` (default: all), of them and what they need only the changed ones.

    Raises ValueError on an unknown target or revision.
    """
    chosen = walk.resolve(graph, targets) or list(graph.upstream)
    if since is None:
        return chosen
    return sorted(graph.ancestors(chosen) & changed(root, graph, since))


def changed(root: Path, graph: walk.Graph, revision: str) -> set[str]:
    """Stages that changed between a git revision and the work tree, and the stages that follow from them.

    Files: those git knows, and those it would add. A dependency that git ignores and no stage makes is compared
    by the hash in the revision's dvc.lock. Raises ValueError on an unknown revision.
    """
    commit = _commit(root, revision)
    touched = {*_git(root, "diff", "--name-only", "--no-renames", "--relative", "-z", commit)}
    untracked = _git(root, "ls-files", "-z", "--others", "--exclude-standard")
    dirty = _with_parents([*touched, *untracked])
    known = _with_parents([*_git(root, "ls-files", "-z"), *touched, *untracked])
    now, then, hashes = _definitions(root, commit, known)
    own = set()
    for stage, definition in now.items():
        old = then.get(stage)
        if (
            old is None
            or (old.text, old.values) != (definition.text, definition.values)
            or dirty & definition.hashes.keys()
            or any(old.hashes.get(path) != value for path, value in hashes[stage].items())
        ):
            own.add(stage)
    return {stage for stage in graph.upstream if graph.ancestors([stage]) & own}


def _commit(root: Path, revision: str) -> str:
    try:
        found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except subprocess.CalledProcessError:
        raise ValueError(f"git knows no revision {revision!r} in {root}: give a commit, a branch or a tag") from None
    return found[0].strip()


def _git(root: Path, *arguments: str) -> list[str]:
    """What git prints, split at NUL."""
    run = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return [line for line in run.stdout.split("\0") if line]


def _with_parents(paths: Iterable[str]) -> set[str]:
    """The paths and all folders that hold them."""
    return {str(p) for path in paths for p in (PurePosixPath(path), *PurePosixPath(path).parents)}


def _definitions(
    root: Path, commit: str, known: set[str]
) -> tuple[dict[str, Definition], dict[str, Definition], dict[str, dict[str, Any]]]:
    """Definitions now and at a commit; and of each stage the present hashes of dependencies that are not in `known`."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        outs = {out.fs_path for out in repo.index.outs}
        now, hashes = {}, {}
        for stage in repo.index.stages:
            name = walk.address(root, stage)
            now[name] = _definition(root, stage)
            hashes[name] = {
                path: dep.get_hash() if dep.exists else None
                for dep in _files(stage)
                if (path := _path(root, dep)) not in known and not any(_overlap(dep.fs_path, out) for out in outs)
            }
        try:
            with repo.switch(commit):
                top = Path(repo.root_dir)
                then = {walk.address(top, stage): _definition(top, stage) for stage in repo.index.stages}
        except DvcException as error:
            raise ValueError(f"the pipeline of {commit[:12]} cannot be read: {error}") from None
    return now, then, hashes


def _definition(root: Path, stage: Any) -> Definition:
    from dvc.dependency import ParamsDependency
    from dvc.stage.serialize import to_pipeline_file

    if getattr(stage, "name", None) is None:
        text = dict(stage.dumpd())
    else:
        (text,) = to_pipeline_file(stage).values()
    text = {key: value for key, value in text.items() if key not in ("desc", "meta")}
    values = {_path(root, dep): dep.read_params() for dep in stage.deps if isinstance(dep, ParamsDependency)}
    return Definition(text, values, {_path(root, dep): dep.hash_info for dep in _files(stage)})


def _files(stage: Any) -> list[Any]:
    from dvc.dependency import ParamsDependency

    return [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]


def _path(root: Path, dep: Any) -> str:
    """Path relative to the root; an address elsewhere as it is."""
    path = PurePosixPath(dep.fs_path)
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(dep.def_path)


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")
