"""Publish the reports of a commit to S3, once and for good; or the shards that training streams from there.

    python -m flows.publish [--to s3://team/reports] [--profile small] [--include-restricted] [--dry-run]
    python -m flows.publish --shards casia1 columbia [--to s3://team/shards] [--replace]

What the stages write below `reports/<profile>/` goes to `<to>/<revision>/`, `index.json` last: a revision without
one is not published. Each write is conditional and has a checksum, so nothing that is there is overwritten, and
what was killed half-way goes on there. `<to>/index.json` and `<to>/index.html` list what is published.
"""

from __future__ import annotations

import argparse
import difflib
import html
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from prefect import flow, get_run_logger

from flows import rebuild, restricted, store, walk
from flows.store import File, Place, size, some
from unforge import scores

SCHEMA_VERSION = 1
INDEX = "index.json"
MANIFEST = "manifest.parquet"
NEVER_CHANGED = "a published revision is never changed: commit, and publish that"
OTHER_SET = "another version of the set is there: choose another place with --to, or write --replace"
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Published reports</title>
<style>body {{ font: 16px/1.5 sans-serif; margin: 2rem }} th, td {{ text-align: left; padding-right: 1.5rem }}</style>
</head>
<body>
<h1>Published reports</h1>
<table>
<tr><th>commit</th><th>committed</th><th>subject</th><th>profile</th><th>cells</th><th></th></tr>
{rows}
</table>
</body>
</html>
"""


def project(root: str | Path | None, profile: str | None) -> tuple[Path, str]:
    """The root and the active profile. Raises ValueError when `profile` is another one."""
    folder = Path(root or Path.cwd()).resolve()
    try:
        active = str(yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))["profile"])
    except FileNotFoundError:
        raise ValueError(f"{folder} is no unforge project: it has no params.yaml") from None
    if profile not in (None, active):
        raise ValueError(f"profile {profile!r}: the stages of this commit are those of {active!r} (params.yaml)")
    return folder, active


def address(to: str | None, variable: str, example: str) -> str:
    """Where to send. Raises ValueError when nothing says so."""
    url = to or os.environ.get(variable, "")
    if not url:
        raise ValueError(f"say where to: --to {example}, or {variable}={example}")
    return url.rstrip("/")


def commit(root: Path) -> dict[str, str]:
    """`revision`, `committed` and `subject` of HEAD. Raises ValueError when the work tree differs from it."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "--no-optional-locks", *arguments], cwd=root, capture_output=True, text=True)
        if run.returncode:
            raise ValueError(f"{root}: git says: {run.stderr.strip()}")
        return run.stdout

    values = git("log", "-1", "--format=%H%n%cI%n%s").removesuffix("\n").split("\n")
    changed = [line[3:] for line in git("status", "--porcelain", "--untracked-files=all").splitlines()]
    if changed:
        raise ValueError(
            f"the work tree differs from commit {values[0][:12]} in {some(changed)}: commit that first, "
            "so that the revision says how the reports were made"
        )
    return dict(zip(("revision", "committed", "subject"), values, strict=True))


@contextmanager
def repository(root: Path) -> Iterator[Any]:
    """DVC's view of the stages and locks, read-only. ValueError while another process works on them."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo, repo.lock:
            yield repo
    except LockError as error:
        raise ValueError(f"another run is at work in {root}: wait for it, or end it ({error})") from None
    except DvcException as error:
        raise ValueError(f"{root}: {error}") from None


def check_locks(root: Path) -> None:
    """Raises ValueError unless the locks are those of the commit's code, values and tables."""
    with repository(root) as repo:
        made = {out.fs_path: out.hash_info for stage in repo.index.stages for out in stage.outs}
        links = [(stage, dep) for stage in repo.index.stages for dep in stage.deps if dep.fs_path in made]
        stale = {walk.address(root, stage) for stage, dep in links if dep.hash_info != made[dep.fs_path]}
    stale |= set(rebuild.stale_locks(root))
    if stale:
        raise ValueError(f"the locks are stale for {some(sorted(stale))}: run `make repro` and commit")


def outputs(root: Path, folder: Path, names: Sequence[str] | None = None) -> list[Path]:
    """What the stages write below a folder, or only `names` there.

    Raises ValueError for an unknown name, and where an output is not on disk as its lock says.
    """
    with repository(root) as repo:
        found = {Path(out.fs_path): (s, out) for s in repo.index.stages for out in s.outs}
        found = {path: pair for path, pair in found.items() if path.is_relative_to(folder)}
        if names is not None:
            known = sorted(path.relative_to(folder).as_posix() for path in found)
            for name in sorted(set(names) - set(known)):
                near = difflib.get_close_matches(name, known, n=3) or known[:10]
                raise ValueError(f"no stage makes {folder.relative_to(root)}/{name}: there are {', '.join(near)}")
            found = {folder / name: found[folder / name] for name in names}
        bad = [walk.address(root, stage) for stage, out in found.values() if not out.exists or out.changed_checksum()]
    if bad:
        raise ValueError(
            f"what {some(sorted(set(bad)))} wrote is not here as the locks say: `unforge share pull`, or `make repro`"
        )
    return sorted(found)


def files_of(output: Path, folder: Path) -> list[File]:
    """The files of an output, keys relative to `folder`."""
    found = sorted(path for path in output.rglob("*") if path.is_file()) if output.is_dir() else [output]
    return [File.at(path, path.relative_to(folder).as_posix()) for path in found]


def has_images(path: Path) -> bool:
    """Whether a file may hold images: all but the rows of scores, which are numbers, and `meta.json`."""
    if path.name == "meta.json":
        return False
    return path.suffix != ".parquet" or pq.read_schema(path).names != scores.SCHEMA.names


def counts(file: File, column: str) -> dict[str, int]:
    """How often each value of a column is there."""
    return dict(sorted(Counter(pq.read_table(file.path, columns=[column]).column(column).to_pylist()).items()))


def gather(root: Path, profile: str, include_restricted: bool) -> tuple[list[File], dict[str, str]]:
    """The files of the reports, `index.json` last, and those held back with the reason."""
    made = root / "reports" / profile
    files: list[File] = []
    held: dict[str, str] = {}
    with walk.alone(root):
        about = commit(root)
        check_locks(root)
        closed = {} if include_restricted else restricted.artefacts(root)
        for output in outputs(root, made):
            reason = closed.get(output.relative_to(root).as_posix(), "")
            for file in files_of(output, made):
                if reason and file.path and has_images(file.path):
                    held[file.key] = reason
                else:
                    files.append(file)
    if not files:
        raise ValueError(f"{made} has no reports that may be published: run `make repro`")
    tables = {
        Path(f.key).stem: counts(f, "status") for f in files if re.fullmatch(r"tables/.*\.table_\w+\.parquet", f.key)
    }
    verdicts = next((counts(file, "verdict") for file in files if file.key == "claims.parquet"), {})
    rows = [{"path": f.key, "size": f.size, "sha256": f.sha256, "content_type": f.kind} for f in files]
    index = {"schema_version": SCHEMA_VERSION, **about, "profile": profile, "tables": tables, "claims": verdicts}
    return [*files, File.of({**index, "files": rows, "held_back": held}, INDEX)], held


def reports(
    root: str | Path | None = None,
    to: str | None = None,
    profile: str | None = None,
    *,
    include_restricted: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Publish the reports of HEAD; `revision`, `url`, how many files were `sent`, and `held_back` with the reasons.

    Raises ValueError, with nothing published, when the reports on disk are not those of the commit, when the
    revision is there with other bytes, and for whatever the store refuses.
    """
    folder, name = project(root, profile)
    url = address(to, "UNFORGE_PUBLISH", "s3://team/reports")
    files, held = gather(folder, name, include_restricted)
    revision = json.loads(files[-1].data)["revision"]
    for reason in sorted(set(held.values())):
        keys = [key for key in held if held[key] == reason]
        say(f"held back, as --include-restricted was not given: {some(keys)} ({reason})")
    with store.opened(url) as top:
        sent = deliver(top.below(revision), files, NEVER_CHANGED, dry_run, say)
        if not dry_run:
            list_all(top)
    return {"revision": revision, "url": f"{url}/{revision}", "sent": sent, "held_back": held}


def deliver(place: Place, files: Sequence[File], cure: str, dry_run: bool, say: Callable[[str], None]) -> int:
    """Send files, the last one last, and say so; how many were not there."""
    if dry_run:
        there = store.listing(place)
        other = store.differing(place, files, there)
        sent = sum(file.key not in there for file in files)
        say(f"{place}: {size(files)}, {sent} to send, {len(other)} there with other bytes")
        return 0
    sent = store.send(place, files, cure)
    say(f"{place}: {size(files)}, {sent} sent, {len(files) - sent} were there")
    return sent


def list_all(place: Place) -> None:
    """Write the lists of what is published. They are made from the revisions that are there: none can be lost."""

    def index(now: bytes) -> File:
        known = _parsed(place, now, lambda value: {e["revision"]: e for e in value["revisions"]}) if now else {}
        pages = place.client.get_paginator("list_objects_v2").paginate(
            Bucket=place.bucket, Prefix=place.key(""), Delimiter="/"
        )
        for name in (part["Prefix"].split("/")[-2] for page in pages for part in page.get("CommonPrefixes", [])):
            if name not in known and re.fullmatch(r"[0-9a-f]{40,64}", name):
                text, _ = store.read(place.below(name), INDEX)
                if text:
                    known[name] = _parsed(place.below(name), text, _entry)
        newest = sorted(known.values(), key=lambda entry: (entry["committed"], entry["revision"]), reverse=True)
        return File.of({"schema_version": SCHEMA_VERSION, "revisions": newest}, INDEX)

    def page(_: bytes) -> File:
        entries = json.loads(store.read(place, INDEX)[0])["revisions"]
        return File.of(PAGE.format(rows="\n".join(map(_line, entries))), "index.html")

    store.update(place, INDEX, index)
    store.update(place, "index.html", page)


def _parsed(place: Place, text: bytes, take: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    try:
        return take(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}/{INDEX} was not written by this command ({error!r}): look at it") from None


def _entry(index: Mapping[str, Any]) -> dict[str, Any]:
    """What the list says of a revision."""
    cells: Counter[str] = Counter()
    for counts in index["tables"].values():
        cells.update(counts)
    entry = {name: index[name] for name in ("revision", "committed", "subject", "profile")}
    entry |= {"cells": dict(cells), "files": len(index["files"]), "bytes": sum(f["size"] for f in index["files"])}
    return entry | {"page": "index.html" if any(f["path"] == "index.html" for f in index["files"]) else INDEX}


def _line(entry: Mapping[str, Any]) -> str:
    cells = ", ".join(f"{count} {status}" for status, count in sorted(entry["cells"].items()))
    link = f'<a href="{html.escape(entry["revision"])}/{html.escape(entry["page"])}">report</a>'
    words = [entry["revision"][:12], entry["committed"], entry["subject"], entry["profile"], cells]
    return "<tr>" + "".join(f"<td>{html.escape(str(word))}</td>" for word in words) + f"<td>{link}</td></tr>"


def shards(
    sets: Sequence[str],
    root: str | Path | None = None,
    to: str | None = None,
    profile: str | None = None,
    *,
    include_restricted: bool = False,
    replace: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Send sets to `<to>/<profile>/<set>/`, the manifest last; those that were held back, with the reason.

    Training reads them there with UNFORGE_SHARDS=`<to>`. Raises ValueError when a set is unknown or not as its
    lock says, and, unless it is to `replace` it, when other bytes are in its place.
    """
    folder, name = project(root, profile)
    url = address(to, "UNFORGE_SHARDS", "s3://team/shards")
    made = folder / "data" / "shards" / name
    with walk.alone(folder):
        closed = {} if include_restricted else restricted.artefacts(folder)
        held = {path.name: closed.get(path.relative_to(folder).as_posix(), "") for path in outputs(folder, made, sets)}
        found = {
            one: sorted(files_of(made / one, made / one), key=lambda file: (file.key == MANIFEST, file.key))
            for one, reason in held.items()
            if not reason
        }
    held = {one: reason for one, reason in held.items() if reason}
    for one, reason in held.items():
        say(f"held back, as --include-restricted was not given: {one} ({reason})")
    with store.opened(url) as top:
        for one, files in found.items():
            place = top.below(f"{name}/{one}")
            if replace and not dry_run and store.differing(place, files, store.listing(place)):
                store.remove(place, first=MANIFEST)  # without it the set is not there, rather than half another
            deliver(place, files, OTHER_SET, dry_run, say)
    return held


@flow(name="publish")
def publish(
    profile: str | None = None, to: str | None = None, root: str | None = None, include_restricted: bool = False
) -> dict[str, Any]:
    """Publish the reports of the commit in `root` (default: the working directory)."""
    return reports(root, to, profile, include_restricted=include_restricted, say=get_run_logger().info)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.publish", description=__doc__.split("\n\n")[0])
    parser.add_argument("--to", metavar="URL", help="default: UNFORGE_PUBLISH; with --shards UNFORGE_SHARDS")
    parser.add_argument("--profile", help="must be the active one, which is the default")
    parser.add_argument("--shards", nargs="+", metavar="SET", help="send these sets instead of the reports")
    parser.add_argument("--replace", action="store_true", help="with --shards: in place of another version of a set")
    parser.add_argument("--include-restricted", action="store_true", help="images that may not be passed on, too")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be sent")
    options = parser.parse_args(arguments)
    if options.replace and not options.shards:
        parser.error("--replace: a published revision is never changed; only sets (--shards) can be")
    common: dict[str, Any] = {"include_restricted": options.include_restricted, "dry_run": options.dry_run}
    common["say"] = lambda line: print(line, flush=True)
    try:
        if options.shards:
            held = shards(options.shards, None, options.to, options.profile, replace=options.replace, **common)
            return 1 if held else 0
        reports(None, options.to, options.profile, **common)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what was sent is kept, publish again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
