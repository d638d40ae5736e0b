"""Publishing to a real S3 server: read in place, never overwritten, never half, nothing lost by two at once."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flows import publish, store
from tests.services.proxy import Proxy
from tests.services.servers import ROOT, S3, PrefectServer, running
from tests.unit import toy
from tests.unit.report import made
from unforge import audit, claims, figures, markdown, paths, profiles, report, shards, tables
from unforge.report import curves
from unforge.types import Sample

pytestmark = pytest.mark.services

TO = "s3://team/reports"
SETS = {"columbia": True, "nist16": False}
"""Sets of the toy project, and whether they may be passed on."""
GIT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org"}
GIT |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org"}


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env={**os.environ, **GIT}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def revision(folder: Path) -> str:
    return run(folder, "git", "rev-parse", "HEAD").strip()


def images(name: str) -> list[Sample]:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return [
        Sample(
            key=f"{name}-{i}", image=shards.encode_png(pixels // (i + 1)), extension="png", label=0, mask=None,
            kind="authentic", source=(f"p{i}",), unit=f"{name}-{i}", split="test",
        )
        for i in range(2)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy paper, measured, tabulated and reported by the real writers, in a repository with its locks."""
    root = tmp_path_factory.mktemp("toy") / "project"
    root.mkdir()
    toy.make(root)
    values = {"machine": {"device": "cpu", "dtype": "float32", "threads": 1, "workers": 0}, "model": "small"}
    made.write_yaml(root / "profiles/small.yaml", {**values, "stand_ins": True})
    (root / ".gitignore").write_text(".unforge/\n/data/shards/\n/reports/*/scores/\n/reports/*/index.html\n")
    (root / ".dvcignore").write_text(".gitignore\n")
    outs: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, free in SETS.items():
            toy.source(root, name, "stand_in" if free else "real")
            target = paths.shards("small", name)
            shards.write(target, images(name), name=name, data="stand_in" if free else "real", version="1",
                         redistribute=free)  # fmt: skip
            outs.append(target)
        for name in ("full/s0", "full/s1", "dense/s0"):
            for testset in ("columbia", "coverage"):
                toy.score(root, f"toy/catnet/{name}", testset, [0.4, 0.6, 0.8])
            outs.append(paths.scores("small", f"toy/catnet/{name}"))
        shown = made.samples("")  # of nist16, a real set that may not be passed on, too
        made.save(outs[-1] / "samples.parquet", shown, made.SAMPLE)
        made.save(outs[-2] / "samples.parquet", [row for row in shown if row["redistribute"]], made.SAMPLE)
        profile = profiles.load("small")
        table, figure = paths.table("small", "toy.table_1"), paths.table("small", "toy.figure_2")
        table.parent.mkdir(parents=True)
        markdown.write(tables.build("toy", "table_1", profile), table)
        points = figures.build("toy", "figure_2", profile)
        markdown.write_parquet(points, figure.with_suffix(".figure_2.parquet"))
        figure.with_suffix(".figure_2.svg").write_text(curves.svg(points, metric="pixel_f1@0.5", salt="figure"))
        claims.write(claims.build(profile), Path("reports/small/claims"))
        audit.write(audit.audit(), Path("reports/small/audit"))
        outs.append(report.write("small"))
    small = [path for part in ("tables/*", "claims.*", "audit.*") for path in (root / "reports/small").glob(part)]
    stages = {
        re.sub(r"\W", "_", str(out)): {"cmd": f"false {out}", "deps": ["papers/toy/paper.yaml"], "outs": [str(out)]}
        for out in outs
    }
    cells: list[Any] = [{str(path.relative_to(root)): {"cache": False}} for path in sorted(small)]
    needs = ["papers/toy/table_1.yaml", *(str(out) for out in outs if "scores" in out.parts)]
    stages["table"] = {"cmd": "false", "deps": needs, "outs": cells}
    made.write_yaml(root / "dvc.yaml", {"stages": stages})
    run(root, "git", "init", "-q")
    run(root, sys.executable, "-m", "dvc", "init", "-q")
    commit(root, "Toy <b>paper</b>")
    return root


def commit(root: Path, message: str) -> None:
    """As after `make repro`: the locks say what is on disk, and all is in git."""
    run(root, sys.executable, "-m", "dvc", "commit", "-q", "-f")
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-q", "--allow-empty", "-m", message)


@pytest.fixture
def project(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the toy project, the working directory."""
    shutil.copytree(original, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def publisher(folder: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m flows.publish` as a process."""
    command = [sys.executable, "-m", "flows.publish", "--to", TO, *options]
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", **environment}
    return subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=180)
    return process.returncode, output


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def objects(s3: S3, prefix: str = "") -> dict[str, tuple[str, Any]]:
    """ETag and time of every object."""
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=s3.bucket, Prefix=prefix)
    return {i["Key"]: (i["ETag"], i["LastModified"]) for page in pages for i in page.get("Contents", [])}


def body(s3: S3, key: str) -> bytes:
    return bytes(s3.client().get_object(Bucket=s3.bucket, Key=key)["Body"].read())


def check_whole(s3: S3, folder: Path) -> dict[str, Any]:
    """The revision is published: each file of its index has the bytes that are on disk. The index."""
    place = f"reports/{revision(folder)}"
    index = json.loads(body(s3, f"{place}/index.json"))
    assert s3.keys(f"{place}/") == sorted(
        f"{place}/{name}" for name in [*(f["path"] for f in index["files"]), "index.json"]
    )
    for file in index["files"]:
        data = body(s3, f"{place}/{file['path']}")
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
        assert data == (folder / "reports/small" / file["path"]).read_bytes()
    return dict(index)


def test_what_is_published_is_what_the_commit_made(s3: S3, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish.main(["--to", TO, "--dry-run"]) == 0
    assert s3.keys() == []
    assert publish.main(["--to", TO]) == 0
    output = capsys.readouterr().out
    index = check_whole(s3, project)
    closed = "scores/toy/catnet/dense/s0/samples.parquet"
    names = {file["path"] for file in index["files"]}
    assert names == {
        path.relative_to(project / "reports/small").as_posix()
        for path in (project / "reports/small").rglob("*")
        if path.is_file()
    } - {closed}
    assert {"index.html", "claims.md", "audit.parquet", "tables/toy.table_1.md", "tables/toy.figure_2.svg"} < names
    assert "scores/toy/catnet/full/s1/samples.parquet" in names  # it shows stand-ins only
    assert "scores/toy/catnet/dense/s0/columbia.parquet" in names  # numbers
    assert list(index["held_back"]) == [closed]
    assert closed in output
    assert "--include-restricted" in output
    assert index["held_back"][closed] in output
    assert (index["revision"], index["profile"]) == (revision(project), "small")
    status = tables.build("toy", "table_1", profiles.load("small")).column("status").to_pylist()
    assert index["tables"] == {"toy.table_1": {name: status.count(name) for name in sorted(set(status))}}
    assert sum(index["claims"].values()) == 3
    kinds = {
        "index.html": "text/html; charset=utf-8",
        "tables/toy.table_1.md": "text/markdown; charset=utf-8",
        "tables/toy.figure_2.svg": "image/svg+xml",
        "claims.parquet": "application/vnd.apache.parquet",
        "index.json": "application/json",
    }
    for name, kind in kinds.items():
        key = f"reports/{index['revision']}/{name}"
        head = s3.client().head_object(Bucket=s3.bucket, Key=key, ChecksumMode="ENABLED")
        digest = hashlib.sha256(body(s3, key))
        assert head["ContentType"] == kind
        assert "immutable" in head["CacheControl"]
        assert head["ChecksumSHA256"] == base64.b64encode(digest.digest()).decode()
        assert head["Metadata"]["sha256"] == digest.hexdigest()

    listed = json.loads(body(s3, "reports/index.json"))["revisions"]
    assert [entry["revision"] for entry in listed] == [index["revision"]]
    page = body(s3, "reports/index.html").decode()
    assert f'href="{index["revision"]}/index.html"' in page
    assert "Toy &lt;b&gt;paper&lt;/b&gt;" in page
    assert s3.client().head_object(Bucket=s3.bucket, Key="reports/index.html")["CacheControl"] == "no-cache"

    secrets = (s3.key.encode(), s3.secret.encode())
    assert not any(secret in output.encode() for secret in secrets)
    assert not any(secret in body(s3, key) for key in s3.keys("") for secret in secrets)
    for path in project.rglob("*"):
        assert not path.is_file() or not any(secret in path.read_bytes() for secret in secrets)


def test_restricted_images_are_sent_when_asked_for(s3: S3, project: Path) -> None:
    shutil.rmtree(project / "data/shards")  # the reports are enough, as in a clone that pulled nothing else
    shutil.rmtree(project / ".dvc/cache")
    result = publish.reports(project, TO, include_restricted=True, say=lambda _: None)
    assert result["held_back"] == {}
    assert "scores/toy/catnet/dense/s0/samples.parquet" in {f["path"] for f in check_whole(s3, project)["files"]}
    # what was published with them is not taken for what is published without
    with pytest.raises(ValueError, match=r"other bytes in place of index\.json; a published revision is never changed"):
        publish.reports(project, TO, say=lambda _: None)


def test_tables_are_read_in_place(s3: S3, project: Path) -> None:
    import duckdb
    import polars
    import pyarrow.fs
    import pyarrow.parquet as pq
    import s3fs

    url = publish.reports(project, TO, say=lambda _: None)["url"]
    truth = pq.read_table(project / "reports/small/tables/toy.table_1.parquet")
    table = f"{url}/tables/toy.table_1.parquet"

    cells = polars.scan_parquet(table).select("row", "column", "measured").collect()
    assert cells.rows() == list(zip(*(truth.column(name).to_pylist() for name in cells.columns), strict=True))
    scored = polars.scan_parquet(f"{url}/scores/toy/catnet/*/s*/co*.parquet", missing_columns="raise").collect()
    assert scored.height == 3 * 2 * 3

    files = pyarrow.fs.S3FileSystem(endpoint_override=s3.endpoint)
    assert pq.read_table(table.removeprefix("s3://"), filesystem=files).equals(truth)
    assert pq.read_table(table).equals(truth)

    with duckdb.connect() as base:  # its own S3 reader is an extension that is fetched from the network
        base.register_filesystem(s3fs.S3FileSystem())
        query = "select count(*), sum(measured) from read_parquet(?)"
        assert base.execute(query, [table]).fetchone() == (
            truth.num_rows,
            pytest.approx(sum(v for v in truth.column("measured").to_pylist() if v is not None)),
        )
        assert base.execute(query, [f"{url}/tables/*.table_*.parquet"]).fetchone()[0] == truth.num_rows  # type: ignore[index]


def test_publishing_again_does_nothing_and_other_bytes_are_refused(
    s3: S3, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish.main(["--to", TO]) == 0
    before = objects(s3)
    capsys.readouterr()
    assert publish.main(["--to", TO]) == 0
    assert " 0 sent" in capsys.readouterr().out
    assert objects(s3) == before

    # a file that went missing is put again; one with other bytes is named and nothing is touched
    place = f"reports/{revision(project)}"
    s3.client().delete_object(Bucket=s3.bucket, Key=f"{place}/claims.md")
    assert publish.main(["--to", TO]) == 0
    check_whole(s3, project)
    s3.client().put_object(Bucket=s3.bucket, Key=f"{place}/tables/toy.table_1.md", Body=b"better numbers")
    s3.client().delete_object(Bucket=s3.bucket, Key=f"{place}/claims.md")
    before = objects(s3)
    capsys.readouterr()
    assert publish.main(["--to", TO]) == 2
    assert "other bytes in place of tables/toy.table_1.md" in capsys.readouterr().err
    assert objects(s3) == before


def test_the_store_itself_refuses_to_overwrite(s3: S3) -> None:
    """Two that write the same key at once: one writes, the other learns whether the bytes are its own."""
    with store.opened(TO) as place:
        files = [store.File.of(f"{i % 2}\n", "same.json") for i in range(16)]
        with ThreadPoolExecutor(16) as pool:
            wrote = list(pool.map(lambda file: store.put(place, file), files))
        assert wrote.count(True) == 1
        winner = files[wrote.index(True)]
        assert body(s3, "reports/same.json") == winner.data
        assert store.send(place, [winner], "") == 0
        with pytest.raises(ValueError, match=r"other bytes in place of same\.json; take care"):
            store.send(place, [next(file for file in files if file.data != winner.data)], "take care")


def test_a_file_that_changes_while_it_is_sent_is_not_taken(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("before")
    file = store.File.at(tmp_path / "a.md", "a.md")
    (tmp_path / "a.md").write_text("behind")
    with store.opened(TO) as place, pytest.raises(ValueError, match=r"a\.md changed while it was sent"):
        store.put(place, file)
    assert s3.keys() == []


def test_an_index_that_many_write_loses_nothing(s3: S3) -> None:
    def add(name: str) -> None:
        def more(now: bytes) -> store.File:
            return store.File.of({"names": sorted([*json.loads(now or b'{"names": []}')["names"], name])}, "list.json")

        store.update(place, "list.json", more)

    with store.opened(TO) as place, ThreadPoolExecutor(8) as pool:
        names = [f"{i:02d}" for i in range(32)]
        list(pool.map(add, names))
    assert json.loads(body(s3, "reports/list.json"))["names"] == names


def test_publishers_at_once_are_all_listed(s3: S3, project: Path, tmp_path: Path) -> None:
    folders = [project]
    for number in (1, 2):
        folders.append(Path(shutil.copytree(project, tmp_path / f"clone{number}", symlinks=True)))
        run(folders[-1], "git", "commit", "-q", "--allow-empty", "-m", f"Another, {number}")
    folders.append(Path(shutil.copytree(project, tmp_path / "colleague", symlinks=True)))  # the same commit
    processes = [publisher(folder) for folder in folders]
    for process in processes:
        status, output = end(process)
        assert status == 0, output
    for folder in folders:
        check_whole(s3, folder)
    revisions = {revision(folder) for folder in folders}
    assert len(revisions) == 3
    listed = json.loads(body(s3, "reports/index.json"))["revisions"]
    assert {entry["revision"] for entry in listed} == revisions
    page = body(s3, "reports/index.html").decode()
    assert all(f'href="{one}/index.html"' in page for one in revisions)


def test_what_was_killed_half_way_is_not_published_and_goes_on(project: Path, tmp_path: Path) -> None:
    with running(S3(tmp_path / "s3" / "data")) as server, Proxy(server.ports[0]) as proxy:
        environment = {**server.environment, "AWS_ENDPOINT_URL": proxy.url}
        place = f"reports/{revision(project)}/"

        def half_way(count: int) -> subprocess.Popen[str]:
            proxy.delay(0.5)  # each answer, so that some files are there long before all are
            process = publisher(project, **environment)
            wait_until(lambda: process.poll() is not None or len(server.keys(place)) >= count)
            assert process.poll() is None, process.communicate()[0]
            return process

        process = half_way(2)
        process.kill()
        process.communicate()
        assert 2 <= len(server.keys(place)) < 12
        assert f"{place}index.json" not in server.keys("")

        process = half_way(len(server.keys(place)) + 2)
        server.kill()
        proxy.restore()
        status, output = end(process)
        assert status == 2
        last = output.splitlines()[-1]
        assert re.fullmatch(r"error: s3://team/reports: .*publish again, what was sent is kept", last)
        assert server.secret not in output
        server.start()
        assert f"{place}index.json" not in server.keys("")
        assert "reports/index.json" not in server.keys("")

        status, output = end(publisher(project, **environment))
        assert status == 0, output
        assert " 0 were there" not in output
        check_whole(server, project)
        assert len(json.loads(body(server, "reports/index.json"))["revisions"]) == 1


def test_answers_that_are_lost_on_their_way(s3: S3, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write whose answer breaks off, anywhere in it, is tried again and finds its own bytes; or it is said."""
    ours = revision(project)
    with Proxy(s3.ports[0]) as proxy, ThreadPoolExecutor(1) as pool:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for size in (12, 24, 150, 400):  # 24: within a "100 Continue", which must not be waited for
            s3.clear()
            attempt = pool.submit(publish.reports, project, TO, say=lambda _: None)
            broken = 0
            while not attempt.done():
                passed = proxy.connections
                proxy.truncate(size)
                wait_until(lambda: attempt.done() or proxy.connections > passed)  # noqa: B023
                broken += 1
                if broken == 4:
                    proxy.restore()
                    break
            error = attempt.exception(120)
            proxy.restore()
            assert broken > 1
            assert error is None or re.search("publish again", str(error)), repr(error)
            if error:
                assert isinstance(error, ValueError)
                publish.reports(project, TO, say=lambda _: None)
            check_whole(s3, project)
            listed = json.loads(body(s3, "reports/index.json"))["revisions"]
            assert [entry["revision"] for entry in listed] == [ours]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "nobody"}, r"refuses the credentials \(InvalidAccessKeyId\): look at AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": "wr0ng"}, r"refuses the credentials \(SignatureDoesNotMatch\)"),
        ({"to": "s3://nothing/reports"}, r"http://127\.0\.0\.1:\d+ has no bucket 'nothing': make it"),
        ({"to": "team/reports"}, r"'team/reports' is not an address: s3://bucket/prefix"),
    ],
)
def test_what_the_store_refuses_is_said_in_one_line(
    s3: S3,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    message: str,
) -> None:
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it keeps the first credentials it finds
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    assert publish.main(["--to", change.get("to", TO)]) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert captured.err.count("\n") == 1
    assert not any(value in captured.err + captured.out for value in (s3.key, s3.secret, "wr0ng", "nobody"))
    assert s3.keys() == []
    assert [bucket["Name"] for bucket in s3.client().list_buckets()["Buckets"]] == ["team"]


def test_what_is_not_the_commits_is_refused(s3: S3, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert publish.main(["--to", TO, *arguments]) == 2
        error = capsys.readouterr().err
        assert s3.keys() == []
        assert error.count("\n") == 1
        return error

    table = project / "reports/small/tables/toy.table_1.md"
    table.write_text(table.read_text() + "\n")
    assert "differs from commit" in refused()
    run(project, "git", "commit", "-q", "-a", "-m", "A table that no stage made")
    assert "what table wrote is not here as the locks say" in refused()
    run(project, "git", "reset", "-q", "--hard", "HEAD~1")

    (project / "notes.txt").write_text("new")
    assert "notes.txt" in refused()
    (project / "notes.txt").unlink()

    scores = project / "reports/small/scores/toy/catnet/full/s0/columbia.parquet"
    data = scores.read_bytes()
    scores.write_bytes(data + b"0")
    assert "full_s0 wrote is not here as the locks say" in refused()
    scores.write_bytes(data)

    spec = project / "papers/toy/table_1.yaml"
    spec.write_text(spec.read_text().replace("A toy", "Another toy"))
    run(project, "git", "commit", "-q", "-a", "-m", "Tables not made again")
    assert "the locks are stale for table: run `make repro`" in refused()
    run(project, "git", "reset", "-q", "--hard", "HEAD~1")

    lock = project / "dvc.lock"
    values = yaml.safe_load(lock.read_text())
    dep = next(dep for dep in values["stages"]["table"]["deps"] if dep["path"].endswith("full/s0"))
    dep["md5"] = "0" * 32 + ".dir"
    lock.write_text(yaml.safe_dump(values))
    run(project, "git", "commit", "-q", "-a", "-m", "A table of other scores")
    assert "the locks are stale for table" in refused()
    run(project, "git", "reset", "-q", "--hard", "HEAD~1")

    assert "the stages of this commit are those of 'small'" in refused("--profile", "paper")
    shutil.rmtree(project / ".git")
    assert "git says" in refused()


def test_the_flow_publishes_and_logs_what_it_holds_back(s3: S3, prefect_server: PrefectServer, project: Path) -> None:
    code = "from flows.publish import publish; publish(to='s3://team/reports', root='.')"
    variables = {**os.environ, **prefect_server.environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=variables, capture_output=True, text=True, timeout=240
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "held back" in output
    assert s3.secret not in output
    check_whole(s3, project)


def test_sets_are_read_from_where_they_are_sent(
    s3: S3, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNFORGE_SHARDS", "s3://team/shards")
    assert publish.main(["--shards", "columbia", "nist16"]) == 1
    output = capsys.readouterr().out
    assert "held back" in output
    assert "nist16" in output
    assert s3.keys() == [
        f"shards/small/columbia/{path.name}" for path in sorted(paths.shards("small", "columbia").iterdir())
    ]
    local = shards.ShardSet(paths.shards("small", "columbia"))
    monkeypatch.chdir(tmp_path)
    there = shards.ShardSet(paths.shards("small", "columbia"))
    assert there.url
    assert (there.digest, there.redistribute) == (local.digest, True)
    assert [there.image_bytes(key) for key in there.keys] == [sample.image for sample in images("columbia")]

    monkeypatch.chdir(project)
    before = objects(s3)
    assert publish.main(["--shards", "columbia"]) == 0
    assert objects(s3) == before
    assert publish.main(["--shards", "colombia"]) == 2
    assert "there are columbia" in capsys.readouterr().err
    assert publish.main(["--shards", "nist16", "--include-restricted"]) == 0
    assert any("nist16" in key for key in s3.keys(""))

    shards.write(
        project / paths.shards("small", "columbia"), images("columbia")[:1], name="columbia", data="stand_in",
        version="2", redistribute=True, max_bytes=1,
    )  # fmt: skip
    assert publish.main(["--shards", "columbia"]) == 2
    assert "not here as the locks say" in capsys.readouterr().err
    commit(project, "Other shards")
    assert publish.main(["--shards", "columbia"]) == 2
    assert "another version of the set is there" in capsys.readouterr().err
    assert (
        objects(s3)[f"shards/small/columbia/{publish.MANIFEST}"] == before[f"shards/small/columbia/{publish.MANIFEST}"]
    )
    assert publish.main(["--shards", "columbia", "--replace"]) == 0
    monkeypatch.chdir(tmp_path)
    assert shards.ShardSet(paths.shards("small", "columbia")).version == "2"
    with pytest.raises(SystemExit):
        publish.main(["--replace"])
