"""One stage's run between machines: what it needs, what it made, and the run-cache entry that names it.

`dvc push --run-cache` would send every run that a clone knows and all that they name, restricted sets among
them. Here it is one stage's, to and from the DVC remote `team`. Objects first, the entry last: an entry that is
there is whole. Reads and writes no `dvc.lock`.

    python -m flows.runs send-inputs|receive-inputs|send-run|receive-run STAGE [--include-restricted]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows import patience, walk

HOME = Path(__file__).resolve().parents[1]
REFUSED, ABSENT = 2, 4
"""Exit statuses: the user has to do something; there is no such run. Any other than 0 is worth another try."""


@contextmanager
def _stage(root: Path, name: str) -> Iterator[tuple[Any, Any, str]]:
    """DVC's repository, one of its stages, and the name of the remote. ValueError when there is no such stage."""
    from dvc.repo import Repo

    from flows import share

    remote = share.remote(root)
    with Repo(str(root), _wait_for_lock=True) as repo:
        with repo.lock:  # another stage may be writing its dvc.lock
            found = {walk.address(root, stage): stage for stage in repo.index.graph}
        if name not in found:
            raise ValueError(f"no stage {name!r} in {root}")
        _reach(repo, remote)
        yield repo, found[name], remote


def _reach(repo: Any, remote: str) -> None:
    """ValueError when the remote's bucket is not there or refuses; OSError when it does not answer."""
    place = repo.cloud.get_remote(remote)
    if place.fs.protocol != "s3":
        return
    from botocore.exceptions import NoCredentialsError

    bucket, _, prefix = place.path.partition("/")
    try:
        place.fs.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except (PermissionError, NoCredentialsError) as error:
        raise ValueError(
            f"s3://{place.path} refuses ({error}): look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except FileNotFoundError as error:
        raise ValueError(f"s3://{place.path}: {error}") from None


def _upstream(repo: Any, stage: Any) -> list[Any]:
    return sorted(repo.index.graph.successors(stage), key=lambda s: s.addressing)


def _outputs(repo: Any, stage: Any, entry: dict[str, Any] | None, needed_by: Any = None) -> list[Any]:
    """A stage's outputs with the hashes of a lock entry, as if DVC cached all of them; of them what a stage needs."""
    whole = stage if entry is None else repo.stage_cache._create_stage(entry, wdir=stage.wdir)
    outs = list(whole.outs)
    if needed_by is not None:
        deps = [Path(dep.fs_path) for dep in needed_by.deps if dep.protocol == "local"]
        outs = [out for out in outs if any(_overlap(Path(out.fs_path), dep) for dep in deps)]
    return outs


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def _objects(repo: Any, outs: Iterable[Any], remote: str) -> set[Any]:
    """Hashes of all files of the outputs. A directory's list is fetched first where it is not here."""
    objects: set[Any] = set()
    for out in outs:
        if not out.hash_info:
            raise ValueError(f"{out} was never built here: `dvc repro {out.stage.addressing}`")
        if out.hash_info.isdir and not out.cache.exists(out.hash_info.value):
            repo.cloud.pull([out.hash_info], remote=remote)
            if not out.cache.exists(out.hash_info.value):
                raise FileNotFoundError(f"the list of files of {out} is neither here nor on the remote")
        for found in out.get_used_objs(remote=remote).values():
            objects |= found
    return objects


def _push(repo: Any, outs: list[Any], remote: str) -> None:
    """What of the outputs is not on the remote yet. OSError when something could not be sent."""
    objects = _objects(repo, outs, remote)
    result = repo.cloud.push(objects, remote=remote)
    there = repo.cloud.get_remote_odb(remote)
    lost = [o for o in objects if not repo.cache.local.exists(o.value) and not there.exists(o.value)]
    if lost:
        names = ", ".join(sorted(str(o.obj_name or o.value) for o in lost)[:5])
        raise ValueError(f"{len(lost)} files are in no cache ({names}): build them again with `dvc repro --force`")
    if result.failed:
        raise OSError(f"{len(result.failed)} of {len(objects)} files could not be sent")


def _pull(repo: Any, outs: list[Any], remote: str) -> None:
    """Everything of the outputs into the cache. OSError when something is missing after that."""
    objects = _objects(repo, outs, remote)
    repo.cloud.pull(objects, remote=remote)
    lost = [o for o in objects if not repo.cache.local.exists(o.value)]
    if lost:
        names = ", ".join(sorted(str(o.obj_name or o.value) for o in lost)[:5])
        raise OSError(f"{len(lost)} of {len(objects)} files could not be fetched whole: {names}")


def _key(stage: Any) -> str:
    """The run-cache's key of a stage: its command, parameters and inputs as they are on disk, its outputs' names."""
    from dvc.stage.cache import _can_hash, _get_stage_hash

    stage.save_deps()
    if not _can_hash(stage):
        raise ValueError(
            f"{stage.addressing} cannot be brought back from a node: DVC's run-cache takes stages with dependencies "
            "and outputs inside the repository, not `always_changed` and not `persist`; run it here"
        )
    return str(_get_stage_hash(stage))


def _inputs(stage: Any) -> dict[str, Any]:
    """The command, parameters and inputs of a stage whose inputs were hashed."""
    from dvc.stage.serialize import to_single_stage_lockfile

    entry = to_single_stage_lockfile(stage)
    return dict(json.loads(json.dumps({name: entry[name] for name in ("cmd", "deps", "params") if name in entry})))


def _ask(repo: Any, root: Path, stage: str, outs: Iterable[Any]) -> None:
    """ValueError when outputs must not reach the remote unasked."""
    from flows import restricted

    held = {root / path: reason for path, reason in restricted.of(repo).items()}
    found = [(path, held[path]) for out in outs for path in held if _overlap(Path(out.fs_path), path)]
    if found:
        path, reason = found[0]
        raise ValueError(
            f"{path.relative_to(root)} must not be passed on ({reason}), and {stage} on a node would: "
            "run it here, or set UNFORGE_INCLUDE_RESTRICTED=1 if the remote may hold it"
        )


def _committed(repo: Any, root: Path) -> None:
    """ValueError when git holds something else than the work tree, but for `dvc.lock` files and outputs."""
    command = ["git", "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames"]
    status = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    outs = {Path(out.fs_path) for stage in repo.index.stages for out in stage.outs}

    def made(name: str) -> bool:
        path = root / name
        return path.name == "dvc.lock" or name.startswith(".unforge/") or bool(outs & {path, *path.parents})

    changed = sorted(line[3:] for line in status.split("\0") if line and not made(line[3:]))
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        names = ", ".join(changed[:5])
        raise ValueError(f"{names}{more}: commit them (or ignore them), a node checks out the revision")


def send_inputs(root: Path, name: str, include_restricted: bool = False) -> dict[str, Any]:
    """Head: send what a stage needs from other stages; what a node has to know of it, or nothing when it has run.

    `locks`: the lock entries of the stages before it, by lock file and name; `inputs`: its command, parameters and
    inputs. Empty when a run of the stage is in the cache or on the remote: it is in the cache then. Raises
    ValueError when git is not up to date, the run-cache does not take the stage, or an input must not be passed on;
    OSError when the remote fails.
    """
    from dvc.stage.serialize import to_single_stage_lockfile

    with _stage(root, name) as (repo, stage, remote):
        if _fetch_run(repo, stage, remote):
            return {}
        _committed(repo, root)
        locks: dict[str, dict[str, Any]] = {}
        outs = []
        for before in _upstream(repo, stage):
            entry = None
            if getattr(before, "name", None):  # not a data file `X.dvc`, which is in git
                entry = json.loads(json.dumps(to_single_stage_lockfile(before)))
                file = Path(before.path).relative_to(root).with_suffix(".lock").as_posix()
                locks.setdefault(file, {})[before.name] = entry
            outs += _outputs(repo, before, entry, stage)
            left_to_git = {out.def_path for out in before.outs if not out.use_cache}
            for out in outs:
                if out.stage is not before and out.def_path in left_to_git:
                    out.commit(relink=False)  # into the cache, from where it is sent
        if not include_restricted:
            _ask(repo, root, name, [*outs, *stage.outs])
        _push(repo, outs, remote)
        return {"locks": locks, "inputs": _inputs(stage)}


def receive_inputs(root: Path, name: str, told: dict[str, Any]) -> None:
    """Node: fetch what a stage needs and put it in place. ValueError when the inputs are not those of the head."""
    with _stage(root, name) as (repo, stage, remote):
        for before in _upstream(repo, stage):
            file = Path(before.path).relative_to(root).with_suffix(".lock").as_posix()
            entry = told["locks"].get(file, {}).get(getattr(before, "name", ""))
            outs = _outputs(repo, before, entry, stage)
            _pull(repo, outs, remote)
            own = {out.def_path for out in before.outs if not out.use_cache}
            for out in outs:
                if out.def_path in own:  # git's files are written to, so never linked to the cache
                    with repo.stage_cache._cache_type_copy():
                        out.checkout(force=True)
                else:
                    out.checkout(force=True)
        _key(stage)
        here = _inputs(stage)
        if here != told["inputs"]:
            raise ValueError(f"{name} differs from the head's: {_difference(here, told['inputs'])}")


def _difference(here: dict[str, Any], there: dict[str, Any]) -> str:
    names = [part for part in ("cmd", "params") if here.get(part) != there.get(part)]
    one, other = ({d["path"]: d for d in entry.get("deps", [])} for entry in (here, there))
    return ", ".join(names + sorted(p for p in one.keys() | other.keys() if one.get(p) != other.get(p)))


def send_run(root: Path, name: str, include_restricted: bool = False) -> None:
    """Node: send what a stage has made, then the run-cache entry that names it. Errors as `send_inputs`."""
    from dvc.stage.cache import _get_cache_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    with _stage(root, name) as (repo, stage, remote):
        entry = to_single_stage_lockfile(stage)
        outs = _outputs(repo, stage, entry)
        if not include_restricted:
            _ask(repo, root, name, outs)
        repo.stage_cache.save(stage)  # it is there, unless the stage was fresh from the start
        key, value = _key(stage), _get_cache_hash(entry)
        _push(repo, outs, remote)
        place = repo.cloud.get_remote_odb(remote, hash_name="md5-dos2unix")
        target = place.fs.join(place.path, "runs", key[:2], key, value)
        place.fs.put_file(repo.stage_cache._get_cache_path(key, value), target)


def receive_run(root: Path, name: str) -> bool:
    """Head: fetch a run of the stage as it stands, so that `dvc repro` restores it; whether there is one."""
    with _stage(root, name) as (repo, stage, remote):
        return _fetch_run(repo, stage, remote)


def _fetch_run(repo: Any, stage: Any, remote: str) -> bool:
    key = _key(stage)
    here = repo.stage_cache._load(stage)
    if here and all(not out.changed_cache() for out in _outputs(repo, stage, here)):
        return True
    place = repo.cloud.get_remote_odb(remote, hash_name="md5-dos2unix")
    folder = place.fs.join(place.path, "runs", key[:2], key)
    found = list(place.fs.find(folder)) if place.fs.exists(folder) else []
    for path in sorted(found):
        with tempfile.TemporaryDirectory(dir=repo.tmp_dir) as temporary:
            file = Path(temporary) / place.fs.name(path)
            place.fs.get_file(path, str(file))
            entry = _read_entry(file, key)
            if entry is None:
                print(f"{path}: not a run of {stage.addressing}, left out", file=sys.stderr)
                continue
            _pull(repo, _outputs(repo, stage, entry), remote)
            target = Path(repo.stage_cache._get_cache_path(key, file.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
            return True
    return False


def _read_entry(file: Path, key: str) -> dict[str, Any] | None:
    """A run-cache entry, or None when it is not what its name and key say.

    So its command, inputs and the places it writes to are those of the stage, whoever wrote it.
    """
    import copy

    from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA
    from dvc.stage.cache import _get_cache_hash
    from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml
    from voluptuous import Invalid

    try:
        entry: dict[str, Any] = COMPILED_LOCK_FILE_STAGE_SCHEMA(load_yaml(str(file)))
    except (YAMLFileCorruptedError, Invalid):
        return None
    same = _get_cache_hash(copy.deepcopy(entry)) == file.name
    return entry if same and _get_cache_hash(copy.deepcopy(entry), key=True) == key else None


def call(
    root: Path,
    arguments: list[str],
    say: Callable[[str], None],
    stop: threading.Event,
    told: dict[str, Any] | None = None,
    limit: float | None = None,
) -> dict[str, Any] | None:
    """Run one of the commands above in `root` as a process of its own, which can be ended; what it answers.

    Tried again while the network fails. None when there is no such run. Raises ValueError for what the user has to
    mend, ConnectionError after `limit` seconds (default: UNFORGE_PATIENCE), InterruptedError when `stop` is set.
    """
    parts = [str(HOME), str(HOME / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in parts if p)}
    command = [sys.executable, "-P", "-m", "flows.runs", *arguments]

    def once() -> dict[str, Any] | None:
        status, out, words = run(command, root, stop, environment, json.dumps(told or {}))
        last = (words.strip().splitlines() or [f"exit status {status}"])[-1]
        if status == REFUSED:
            raise ValueError(last)
        if status not in (0, ABSENT):
            raise ConnectionError(f"{arguments[0]} failed: {last}")
        return None if status == ABSENT else dict(json.loads(out or "{}"))

    return patience.patiently(once, stop, say, limit)


def run(
    command: list[str],
    root: Path,
    stop: threading.Event,
    environment: dict[str, str] | None = None,
    stdin: str = "",
) -> tuple[int, str, str]:
    """Exit status and the text on both outputs. Its process group is ended when `stop` is set (InterruptedError)."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as words:
        given.write(stdin.encode())
        given.seek(0)
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=given, stdout=out, stderr=words, start_new_session=True
        )
        try:
            while process.poll() is None:
                if stop.wait(0.05):
                    raise InterruptedError(command[-1])
        finally:
            walk.end(process.pid)
            process.wait()
        texts = []
        for file in (out, words):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return process.returncode, texts[0], texts[1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.runs", description=__doc__.split("\n\n")[0])
    parser.add_argument("action", choices=("send-inputs", "receive-inputs", "send-run", "receive-run"))
    parser.add_argument("stage")
    parser.add_argument("--include-restricted", action="store_true", help="outputs that must not be passed on, too")
    options = parser.parse_args(arguments)
    root, stage = Path.cwd().resolve(), options.stage
    try:
        if options.action == "send-inputs":
            print(json.dumps(send_inputs(root, stage, options.include_restricted)))
        elif options.action == "receive-inputs":
            receive_inputs(root, stage, json.loads(sys.stdin.read()))
        elif options.action == "send-run":
            send_run(root, stage, options.include_restricted)
        elif not receive_run(root, stage):
            return ABSENT
    except ValueError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return REFUSED
    except Exception as error:  # DVC, s3fs, botocore and the kernel have many words for a network that fails
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
