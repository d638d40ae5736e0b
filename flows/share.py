"""What a team shares through S3: the outputs that the locks name, and the run-cache entries that restore them.

    python -m flows.share status|push|pull [TARGET ...] [--json] [--include-restricted] [--jobs N]

`status` says what a colleague would get; `push` and `pull` say it too before anything moves. Only what the
current locks name is pushed, never all that the cache and the run-cache hold, and images marked
`redistribute: false` stay here unless they are asked for (`flows.restricted`). An output's list of files goes
last, so one that was broken off never looks whole. What arrives is checked by its hash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.callbacks import Callback
from tqdm import tqdm

from flows import inventory, walk
from flows.inventory import JOBS, Output, Plan, Store
from unforge import s3

REMOTE = "team"
"""Name of the DVC remote. It is never the default one: a plain `dvc push` would take restricted sets along."""
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN")
TRIES = 2
"""Times s3fs sends a request that broke off; botocore tries five times in each (AWS_MAX_ATTEMPTS)."""
EPILOG = """examples:
  unforge share status                      what a colleague would get, and what is held back
  unforge share push sparsevit.table_4      what one table needs
  unforge share pull && unforge reproduce   a fresh clone: fetch, then make what is missing

The store: UNFORGE_REMOTE=s3://bucket/prefix, AWS_ENDPOINT_URL for another than Amazon's, AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY. Status 0: both sides have everything that is not held back; 1: something is missing or
failed; 2: bad input, credentials or bucket; 130: interrupted."""
ROUNDS = 2
"""Objects per job that are copied before it is seen whether anything still gets through."""


def remote(root: Path) -> str:
    """Name of the team's DVC remote, set up in `.dvc/config.local` from UNFORGE_REMOTE and AWS_ENDPOINT_URL.

    Without UNFORGE_REMOTE, what `dvc remote modify --local team ...` left there holds. Only the address and the
    endpoint are written; credentials stay in the environment. Raises ValueError that says what to set.
    """
    from dvc.config import Config, ConfigError

    if not (root / ".dvc" / "config").is_file():
        raise ValueError(f"{root} is not a DVC repository: change to the project's folder")
    try:
        config = Config(str(root / ".dvc"))
        local = config.load_one("local")
    except ConfigError as error:
        raise ValueError(f"{root}: {error}") from None
    url = os.environ.get("UNFORGE_REMOTE", "").rstrip("/")
    if not url:
        if REMOTE in config["remote"]:
            s3.split(config["remote"][REMOTE].get("url", ""))
            return REMOTE
        raise ValueError(
            "no place to share: set UNFORGE_REMOTE=s3://bucket/prefix, for another store than Amazon's "
            "AWS_ENDPOINT_URL, and the credentials AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    s3.split(url)
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    if re.search(r"//[^/]*@", endpoint):
        raise ValueError("AWS_ENDPOINT_URL holds credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    # `verify`: DVC believes what it downloads unless it is told to hash it; a truncated object would pass
    wanted = {"url": url, "verify": "true", "connect_timeout": "10"}
    now = dict(local["remote"].get(REMOTE, {}))
    if endpoint:
        wanted["endpointurl"] = endpoint
    elif now.get("url") not in (None, url):
        now.pop("endpointurl", None)  # it belongs to the former address
    if {**now, **wanted} != local["remote"].get(REMOTE):
        with config.edit("local") as changed:
            changed["remote"][REMOTE] = {**now, **wanted}
    return REMOTE


@dataclass(frozen=True)
class Outcome:
    """What a push or a pull did."""

    plan: Plan
    """What is where now."""
    objects: int
    bytes: int
    failed: dict[str, str]
    """Outputs (or run-cache entries) that did not arrive, and why."""


@contextmanager
def opened(root: Path) -> Iterator[Store]:
    """The store, reached with the environment's credentials.

    Raises ValueError when nothing is configured, the credentials are refused or the bucket is not there, and
    OSError when the store does not answer.
    """
    from dvc.repo import Repo

    name = remote(root)
    with Repo(str(root), _wait_for_lock=True) as repo:
        store = repo.cloud.get_remote(name)
        place = f"s3://{store.path}"
        with reaching(place):
            store.fs.fs.retries = TRIES
            bucket, prefix = s3.split(place)
            try:
                store.fs.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
            except FileNotFoundError as error:
                raise ValueError(f"{place} is not there, make the bucket first: {masked(error)}") from None
            yield Store(root, repo, repo.cache.local, store.odb, place)


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Turns what S3 clients raise into one line: ValueError what the user can mend, OSError the rest."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
    from dvc.exceptions import DvcException

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError):
        raise ValueError(f"no credentials for {place}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except DvcException as error:
        raise ValueError(masked(error)) from None
    except (OSError, BotoCoreError, ClientError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # a file of this machine
            raise
        if isinstance(error, PermissionError):
            raise ValueError(f"{place} refuses these credentials or what they ask for: {masked(error)}") from None
        raise OSError(f"{place}: {masked(error)}") from None


def masked(error: object) -> str:
    """An error's text in one line, without credentials."""
    text = " ".join(str(error).split()) or type(error).__name__
    for name in SECRETS:
        text = text.replace(os.environ.get(name) or "\0", "***")
    return text


def push(
    root: Path,
    targets: Iterable[str] = (),
    *,
    upstream: bool = True,
    include_restricted: bool = False,
    jobs: int = JOBS,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Send what the locks name and the store lacks, then the run-cache entries of what is whole there.

    `targets` with all they need (or without: `upstream` false), default all; `jobs` objects at a time.
    Raises ValueError on bad input, credentials or bucket, OSError when the store does not answer.
    """
    with opened(root) as store:
        plan = inventory.make_plan(store, targets, upstream, include_restricted)
        say(inventory.describe(plan))
        failed: dict[str, str] = {}
        todo = [o for o in plan.group("push") if _sound(store, plan, o, failed)]
        sizes = {key: size for o in todo for key, size in plan.lacks(o).items()}
        failed |= _move(store.cache, store.odb, todo, sizes, jobs, "push")
        plan = inventory.refreshed(store, plan)
        moved = {key: size for key, size in sizes.items() if plan.there.get(key) == size}
        whole = {o.stage for o in plan.outputs} - {o.stage for o in plan.outputs if plan.state(o) != "shared"}
        runs = [run for stage, run in plan.runs.items() if stage in whole and run in plan.runs_here - plan.runs_there]
        folder = Path(store.repo.stage_cache.cache_dir)
        store.odb.fs.fs.pipe({f"{store.runs}/{run}": (folder / run).read_bytes() for run in runs})
        return Outcome(inventory.refreshed(store, plan), len(moved), sum(moved.values()), failed)


def pull(
    root: Path,
    targets: Iterable[str] = (),
    *,
    upstream: bool = True,
    jobs: int = JOBS,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Fetch what the locks name and the store has, check every object's hash, and lay the outputs out.

    The run-cache entries come too. Arguments and errors as of `push`. Other outputs are left as they are.
    """
    with opened(root) as store:
        plan = inventory.make_plan(store, targets, upstream)
        say(inventory.describe(plan))
        todo = [o for o in plan.outputs if plan.state(o) == "pull"]
        sizes = plan.to_pull()
        failed = _move(store.odb, store.cache, todo, sizes, jobs, "pull")
        _fetch_runs(store, sorted(plan.runs_there - plan.runs_here))
        plan = inventory.refreshed(store, plan)
        with store.repo.lock:
            for output in plan.outputs:
                if output.whole(plan.here) and output.path not in failed:
                    text = _lay_out(output)
                    if text:
                        failed[output.path] = text
        moved = {key: size for key, size in sizes.items() if key in plan.here}
        return Outcome(plan, len(moved), sum(moved.values()), failed)


def _sound(store: Store, plan: Plan, output: Output, failed: dict[str, str]) -> bool:
    """Whether what would replace objects in the store has its hash; `failed` gets the reason when not."""
    for key in plan.lacks(output):
        path = store.cache.oid_to_path(key)
        if key in plan.there:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if found != key.split(".")[0]:
                failed[output.path] = f"its object in the cache is damaged: delete {path} and pull"
                return False
    return True


def _move(
    source: Any, target: Any, outputs: list[Output], sizes: dict[str, int], jobs: int, title: str
) -> dict[str, str]:
    """Copy the objects in `sizes` between two object stores, output by output; outputs that failed, and why.

    A folder's list of files follows its files. Raises OSError when nothing of some dozen objects gets through.
    """
    lists = {o.folder for o in outputs}
    queue = [key for key in sizes if key not in lists]
    left, errors, waiting = set(queue), dict[str, str](), list(outputs)
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc=title, disable=None) as bar:
        for start in range(0, max(1, len(queue)), ROUNDS * jobs):
            keys = queue[start : start + ROUNDS * jobs]
            found = _add(source, target, keys, jobs, bar, title == "pull")
            errors |= found
            left -= set(keys)
            ready = [o for o in waiting if not left.intersection(o.objects)]
            waiting = [o for o in waiting if o not in ready]
            whole = [o.folder for o in ready if o.folder in sizes and not any(key in errors for key in o.objects)]
            errors |= _add(source, target, list(dict.fromkeys(whole)), jobs, bar, title == "pull")
            if found and len(found) == len(keys):
                raise OSError(f"nothing gets through any more: {next(iter(found.values()))}")
    return {o.path: errors[key] for o in outputs for key in o.objects if key in errors}


def _add(source: Any, target: Any, keys: list[str], jobs: int, bar: Any, verify: bool) -> dict[str, str]:
    """Copy objects; those that did not arrive, and why. With `verify` they are hashed, and dropped if wrong."""
    errors: dict[str, str] = {}
    if not keys:
        return errors
    target.add(
        [source.oid_to_path(key) for key in keys], source.fs, keys, callback=_Bytes(bar), check_exists=False,
        on_error=lambda key, error: errors.setdefault(key, masked(error)), batch_size=jobs, verify=verify,
    )  # fmt: skip
    for key in keys if verify else []:
        if not Path(target.oid_to_path(key)).is_file():
            errors.setdefault(
                key,
                f"s3://{source.oid_to_path(key)} is damaged: delete it, then whoever has the output pushes it again",
            )
    return errors


class _Bytes(Callback):  # type: ignore[misc]
    """Moves a bar by the bytes of the files that are copied; fsspec reports those to what `branched` gives."""

    def __init__(self, bar: Any, child: bool = False) -> None:
        super().__init__()
        self.bar, self.child = bar, child

    def branched(self, path_1: Any, path_2: Any, **_: Any) -> _Bytes:
        return _Bytes(self.bar, child=True)

    def relative_update(self, inc: int = 1) -> None:
        if self.child:
            self.bar.update(inc)


def _fetch_runs(store: Store, runs: list[str]) -> None:
    """Run-cache entries from the store; one that is not what its name says is left there."""
    from dvc.stage.cache import _get_cache_hash
    from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml

    folder = Path(store.repo.stage_cache.cache_dir)
    asked = {f"{store.runs}/{run}": folder / run for run in runs}
    answers = store.odb.fs.fs.cat(list(asked), on_error="omit") if asked else {}
    for path, data in answers.items():
        target = asked[path]
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_bytes(data)
        try:
            if _get_cache_hash(load_yaml(str(temporary))) == target.name:
                os.replace(temporary, target)
        except (YAMLFileCorruptedError, AttributeError):
            pass
        finally:
            temporary.unlink(missing_ok=True)


def _lay_out(output: Output) -> str:
    """Make the work tree's output what the lock names; why it could not be, empty when it is."""
    from dvc.exceptions import ConfirmRemoveError, DvcException

    try:
        output.out.checkout()
    except ConfirmRemoveError:
        return "it would replace files that are saved nowhere: move them away first"
    except (DvcException, OSError) as error:
        return masked(error)
    return ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="unforge share",
        description=__doc__.split("\n\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["status", "push", "pull"])
    parser.add_argument("targets", nargs="*", help="stages, tables (sparsevit.table_6) or dvc.yaml files; default: all")
    parser.add_argument("--json", action="store_true", help="what is where, for programs")
    parser.add_argument("--include-restricted", action="store_true", help="push images marked redistribute: false too")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"objects at a time (default {JOBS})")
    options = parser.parse_args(arguments)
    root, jobs = Path.cwd(), max(1, options.jobs)
    signal.signal(signal.SIGTERM, walk.interrupt)

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    try:
        if options.command == "status":
            with opened(root) as store:
                plan = inventory.make_plan(store, options.targets, everything=options.include_restricted)
            print(json.dumps(inventory.as_dict(plan), indent=1) if options.json else inventory.describe(plan))
            return 0 if plan.complete() else 1
        with ExitStack() as stack:
            if options.command == "push":
                done = push(root, options.targets, include_restricted=options.include_restricted, jobs=jobs, say=say)
            else:
                stack.enter_context(walk.alone(root))
                done = pull(root, options.targets, jobs=jobs, say=say)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        more = "" if options.command == "status" else "; what arrived is kept, the same command goes on with the rest"
        print(f"error: {masked(error)}{more}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what arrived is kept, the same command goes on with the rest", file=sys.stderr)
        return 130
    return _report(options.command, done, options.json)


def _report(command: str, done: Outcome, as_json: bool) -> int:
    """Print what a push or a pull did; its exit status."""
    plan, word = done.plan, "pushed" if command == "push" else "pulled"
    wanted = [o for o in plan.outputs if not o.held]
    left = [o for o in wanted if not o.whole(plan.there if command == "push" else plan.here)]
    if as_json:
        moved = {"objects": done.objects, "bytes": done.bytes, "failed": done.failed}
        print(json.dumps({**inventory.as_dict(plan), "moved": moved}, indent=1))
    else:
        print(f"{word} {done.objects} objects, {inventory.size(done.bytes)}; ", end="")
        side = "there" if command == "push" else "here"
        print(f"{len(wanted) - len(left)} of {len(wanted)} outputs are {side} now")
    for path, text in done.failed.items():
        print(f"FAILED {path}: {text}", file=sys.stderr)
    return 1 if left or done.failed else 0


if __name__ == "__main__":
    sys.exit(main())
