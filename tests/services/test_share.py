"""`unforge share` between clones of a small real DVC repository, through a real S3 server."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from flows import locks, share, walk
from tests.services.proxy import Proxy
from tests.services.servers import ROOT, S3, running
from unforge import shards
from unforge.types import Sample

pytestmark = pytest.mark.services

DVC = [sys.executable, "-m", "dvc"]
REMOTE = "s3://team/dvc"
SECRET = "data/shards/small/casia1"
MANY, SIZE = 40, 64_000
"""Files of the output that takes a while to send, and bytes of each."""


def stage(name: str, command: str, deps: list[str], out: Any) -> dict[str, Any]:
    """A stage that writes its name into `ran` whenever it really runs."""
    return {"cmd": f"echo {name} >> ran && {command}", "deps": deps, "outs": [out]}


STAGES = {
    "make-many": stage("make-many", "cp -r $MADE/many many", ["seed.txt"], "many"),
    "make-one": stage("make-one", "cat many/00.bin seed.txt > one.bin", ["many", "seed.txt"], "one.bin"),
    "make-other": stage("make-other", "cat seed.txt seed.txt > other.bin", ["seed.txt"], "other.bin"),
    "ingest-casia1": stage(
        "ingest-casia1", f"mkdir -p data/shards/small && cp -r $MADE/casia1 {SECRET}", ["seed.txt"], SECRET
    ),
    "train-it": stage("train-it", f"wc -c {SECRET}/meta.json > model.bin", [SECRET], "model.bin"),
    "table-t": stage("table-t", "cat one.bin model.bin > t.md", ["one.bin", "model.bin"], {"t.md": {"cache": False}}),
}


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose stages ran, committed. One output holds a real set that must not be passed on."""
    base = tmp_path_factory.mktemp("share")
    made, folder = base / "made", base / "project"
    rng = np.random.default_rng(0)
    (made / "many").mkdir(parents=True)
    for n in range(MANY):
        (made / "many" / f"{n:02d}.bin").write_bytes(rng.bytes(SIZE))
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
    sample = Sample(
        key="k", image=buffer.getvalue(), extension="png", mask=None, label=0, kind="authentic", source=("k",),
        unit="k", split="test", meta={},
    )  # fmt: skip
    shards.write(made / "casia1", [sample], name="casia1", data="real", version="1", redistribute=False)
    folder.mkdir()
    command("git", "init", "-q", "-b", "main", folder=folder)
    command(*DVC, "init", "-q", folder=folder)
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    (folder / ".gitignore").write_text("/many\n*.bin\n/data\n/ran\n/.unforge\n")
    (folder / "seed.txt").write_text("1\n")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MADE", str(made))
        command(*DVC, "repro", "-q", folder=folder)
        locks.canonical(folder)
        commit(folder)
        yield folder


def commit(folder: Path) -> None:
    command("git", "add", "-A", folder=folder)
    command("git", "-c", "user.name=n", "-c", "user.email=n@localhost", "commit", "-q", "-m", "run", folder=folder)


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFORGE_REMOTE", REMOTE)


@pytest.fixture
def project(template: Path, tmp_path: Path, team: None) -> Path:
    return Path(shutil.copytree(template, tmp_path / "project", symlinks=True))


@pytest.fixture
def colleague(project: Path, tmp_path: Path) -> Path:
    """A fresh clone: what is in git and nothing else."""
    command("git", "clone", "-q", str(project), str(tmp_path / "colleague"), folder=tmp_path)
    return tmp_path / "colleague"


@pytest.fixture
def unforge_share(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command in a folder: exit status, what it prints, its errors; credentials are in neither."""
    before = signal.getsignal(signal.SIGTERM)

    def run(folder: Path, *words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        capfd.readouterr()
        try:
            code = share.main(list(words))
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        for secret in ("devkey", "devsecret"):
            assert secret not in out + err
        return code, out, err

    return run


def reproduce(folder: Path) -> list[str]:
    """`dvc repro`; the stages that really ran."""
    (folder / "ran").unlink(missing_ok=True)
    command(*DVC, "repro", "-q", folder=folder)
    return (folder / "ran").read_text().split() if (folder / "ran").exists() else []


def files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def stored(s3: S3) -> dict[str, int]:
    """Hash and bytes of every object in the bucket, as the server lists them."""
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket="team", Prefix="dvc/files/md5/")
    items = [item for page in pages for item in page.get("Contents", [])]
    return {"".join(item["Key"].split("/")[-2:]): item["Size"] for item in items}


def test_status_says_what_a_colleague_would_get_before_anything_moves(
    s3: S3, project: Path, unforge_share: Callable[..., Any]
) -> None:
    code, text, _ = unforge_share(project, "status")
    assert code == 1
    assert SECRET in text.split("held back: ")[1]
    assert "redistribute: false" in text
    code, text, _ = unforge_share(project, "status", "--json")
    told = json.loads(text)
    assert code == 1
    assert s3.keys() == []
    free = {"many", "one.bin", "other.bin", "model.bin"}
    for output in told["outputs"]:
        there = files(project / output["path"])
        assert output["bytes"] == sum(p.stat().st_size for p in there)
        assert output["files"] == len(there)
        assert output["state"] == "push"
        assert bool(output["held_back"]) == (output["path"] not in free)
    assert {o["path"] for o in told["outputs"]} == free | {SECRET}

    code, text, _ = unforge_share(project, "push", "--json")
    assert code == 0
    moved = json.loads(text)["moved"]
    objects = stored(s3)
    assert (moved["objects"], moved["bytes"]) == (len(objects), sum(objects.values()))
    assert told["push"] == {"objects": moved["objects"], "bytes": moved["bytes"]}
    files_there = {md5(p): p.stat().st_size for name in free for p in files(project / name)}
    assert {key: size for key, size in objects.items() if not key.endswith(".dir")} == files_there
    code, text, _ = unforge_share(project, "status", "--json")
    assert code == 0
    assert json.loads(text)["complete"] is True


def test_a_colleague_pulls_and_reproducing_is_a_no_op_but_for_what_was_held_back(
    s3: S3, project: Path, colleague: Path, unforge_share: Callable[..., Any]
) -> None:
    assert unforge_share(project, "push")[0] == 0
    code, text, _ = unforge_share(colleague, "status")
    assert code == 1
    assert "only there: `unforge share pull` fetches" in text
    assert f"{SECRET} (" in text.split("held back: ")[1]
    assert "`unforge data add casia1 PATH` adds it" in text
    assert not (colleague / "many").exists()  # it only looked
    assert unforge_share(colleague, "pull")[0] == 0
    for name in ("many", "one.bin", "other.bin", "model.bin"):
        assert [p.read_bytes() for p in files(colleague / name)] == [p.read_bytes() for p in files(project / name)]
    assert not (colleague / SECRET).exists()
    assert command(*DVC, "status", "table-t", "make-one", "make-other", folder=colleague).stdout.count("deleted") == 0
    assert reproduce(colleague) == ["ingest-casia1"]
    assert "up to date" in command(*DVC, "status", folder=colleague).stdout
    assert command("git", "status", "--porcelain", folder=colleague).stdout == ""

    # a lost lock (or an entry that a merge dropped) comes back from the run-cache; `dvc.lock` with the same bytes
    lock = (colleague / "dvc.lock").read_bytes()
    (colleague / "dvc.lock").unlink()
    shutil.rmtree(colleague / "many")
    (colleague / "model.bin").unlink()
    assert reproduce(colleague) == ["table-t"]  # git keeps its output, so DVC has no run-cache entry of it
    locks.canonical(colleague)
    assert (colleague / "dvc.lock").read_bytes() == lock
    assert unforge_share(colleague, "status")[0] == 0


def test_restricted_images_reach_the_bucket_only_when_asked_for(
    s3: S3, project: Path, colleague: Path, unforge_share: Callable[..., Any]
) -> None:
    secret = {md5(p) for p in files(project / SECRET)}
    folder = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["ingest-casia1"]["outs"][0]["md5"]
    # also when a target names it, and with everything DVC's run-cache knows at hand
    assert unforge_share(project, "push", "ingest-casia1")[0] == 0
    assert unforge_share(project, "push")[0] == 0
    assert not {*secret, folder} & stored(s3).keys()
    runs = [s3.client().get_object(Bucket="team", Key=key)["Body"].read() for key in s3.keys("dvc/runs/")]
    assert len(runs) == 4
    made = [out["path"] for run in runs for out in yaml.safe_load(run)["outs"]]
    assert sorted(made) == ["many", "model.bin", "one.bin", "other.bin"]
    image = shards.ShardSet(project / SECRET).image_bytes("k")
    for key in s3.keys("dvc/"):
        assert image not in s3.client().get_object(Bucket="team", Key=key)["Body"].read()

    assert unforge_share(project, "push", "--include-restricted")[0] == 0
    assert {*secret, folder} <= stored(s3).keys()
    code, text, _ = unforge_share(colleague, "pull")
    assert code == 0
    assert "somebody has shared it" in text
    assert reproduce(colleague) == []


def test_targets_bring_what_they_need_and_nothing_else(
    s3: S3, project: Path, colleague: Path, unforge_share: Callable[..., Any]
) -> None:
    assert unforge_share(project, "push", "make-one")[0] == 0
    expected = {md5(p) for name in ("many", "one.bin") for p in files(project / name)}
    assert {key for key in stored(s3) if not key.endswith(".dir")} == expected
    assert unforge_share(colleague, "pull", "make-one")[0] == 0
    assert (colleague / "one.bin").exists()
    assert not (colleague / "other.bin").exists()
    code, _, error = unforge_share(project, "push", "make-noe")
    assert code == 2
    assert "near are make-one" in error


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "devsecret-but-wrong"}, "refuses these credentials"),
        ({"AWS_ACCESS_KEY_ID": "devkey-but-wrong"}, "refuses these credentials"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "set AWS_ACCESS_KEY_ID"),
        ({"UNFORGE_REMOTE": "s3://nobody/dvc"}, "s3://nobody/dvc is not there, make the bucket first"),
        ({"UNFORGE_REMOTE": ""}, "set UNFORGE_REMOTE=s3://bucket/prefix"),
        ({"UNFORGE_REMOTE": "/srv/team"}, "is not an address"),
        ({"AWS_ENDPOINT_URL": "http://devkey:devsecret@127.0.0.1:1"}, "AWS_ENDPOINT_URL holds credentials"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    s3: S3,
    template: Path,
    team: None,
    unforge_share: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, str],
    told: str,
) -> None:
    (template / ".dvc/config.local").unlink(missing_ok=True)
    for name, value in changed.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    for action in ("status", "push", "pull"):
        code, out, error = unforge_share(template, action)
        assert code == 2, error
        assert told in error
        assert error.count("\n") == 1
        assert out == ""


def test_a_folder_without_dvc_is_refused_and_left_alone(
    s3: S3, team: None, tmp_path: Path, unforge_share: Callable[..., Any]
) -> None:
    code, _, error = unforge_share(tmp_path, "status")
    assert code == 2
    assert "change to the project's folder" in error
    assert list(tmp_path.iterdir()) == []


@contextmanager
def begun(folder: Path, proxy: Proxy, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process of its own, one object at a time, through a proxy; killed at the end."""
    path = f"{ROOT}:{ROOT / 'src'}"
    environment = {**os.environ, "PYTHONPATH": path, "AWS_ENDPOINT_URL": proxy.url, "AWS_MAX_ATTEMPTS": "2"}
    command = [sys.executable, "-m", "flows.share", *words, "--jobs", "1"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def whole(folder: Path, objects: dict[str, int]) -> dict[str, int]:
    """Of objects in the store, those with the bytes that this machine's cache has."""
    cache = folder / ".dvc/cache/files/md5"
    return {key: size for key, size in objects.items() if (cache / key[:2] / key[2:]).stat().st_size == size}


def test_a_server_killed_during_a_push_and_back_again(
    project: Path,
    colleague: Path,
    unforge_share: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with running(S3(tmp_path / "s3" / "data")) as server, Proxy(server.ports[0]) as proxy:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        proxy.delay(0.1)
        with begun(project, proxy, "push") as process:
            until(lambda: len(stored(server)) >= 5, process)
            server.kill()
            proxy.close()  # so that connections are refused, as they are where no server runs
            _, error = process.communicate(timeout=300)
        assert process.returncode == 1, error
        assert "the same command goes on with the rest" in error
        assert "Traceback" not in error

        server.start()
        arrived = stored(server)
        assert 5 <= len(arrived) < MANY
        assert whole(project, arrived) == arrived
        assert not [key for key in arrived if key.endswith(".dir")]  # nothing looks finished that is not
        code, text, _ = unforge_share(project, "status", "--json")
        told = json.loads(text)
        assert code == 1
        many = next(o for o in told["outputs"] if o["path"] == "many")
        assert many["state"] == "push"
        outputs = ("many", "one.bin", "other.bin", "model.bin")
        free = {md5(p): p.stat().st_size for name in outputs for p in files(project / name)}
        lists = [p.stat().st_size for p in (project / ".dvc/cache/files/md5").rglob("*.dir")]
        sizes = [max(lists)]  # `many` has a list of its files, the other folder is held back
        assert told["push"]["objects"] == len(free) + 1 - len(arrived)
        assert told["push"]["bytes"] == sum(free.values()) + sum(sizes) - sum(arrived.values())

        code, text, _ = unforge_share(project, "push", "--json")
        assert code == 0
        assert json.loads(text)["moved"]["bytes"] == told["push"]["bytes"]
        assert unforge_share(project, "status")[0] == 0
        assert unforge_share(colleague, "pull")[0] == 0
        assert [p.read_bytes() for p in files(colleague / "many")] == [p.read_bytes() for p in files(project / "many")]


def test_a_push_that_is_killed_goes_on_where_it_was(
    s3: S3, project: Path, colleague: Path, unforge_share: Callable[..., Any]
) -> None:
    with Proxy(s3.ports[0]) as proxy:
        proxy.delay(0.1)
        for signal_, status in ((signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)):
            before = len(stored(s3))
            with begun(project, proxy, "push") as process:
                until(lambda before=before: len(stored(s3)) >= before + 3, process)
                process.send_signal(signal_)
                _, error = process.communicate(timeout=60)
            assert process.returncode == status, error
            assert "Traceback" not in error
    arrived = stored(s3)
    assert whole(project, arrived) == arrived
    code, text, _ = unforge_share(colleague, "status", "--json")
    assert code == 1
    assert {o["state"] for o in json.loads(text)["outputs"]} == {"missing"}
    assert unforge_share(colleague, "pull")[0] == 1  # half of `many` is there: nothing of it is laid out
    assert not (colleague / "many").exists()
    assert unforge_share(project, "push")[0] == 0
    assert unforge_share(colleague, "pull")[0] == 0
    assert len(files(colleague / "many")) == MANY


def test_damaged_objects_are_noticed_and_replaced(
    s3: S3, project: Path, colleague: Path, unforge_share: Callable[..., Any]
) -> None:
    assert unforge_share(project, "push")[0] == 0
    data = (project / "many/07.bin").read_bytes()
    key = f"dvc/files/md5/{md5(project / 'many/07.bin')[:2]}/{md5(project / 'many/07.bin')[2:]}"

    # truncated: the sizes tell, on both sides, and whoever has it pushes it again
    s3.client().put_object(Bucket="team", Key=key, Body=data[: SIZE // 2])
    code, text, _ = unforge_share(colleague, "status")
    assert code == 1
    assert "many" in text.split("damaged in the store")[1]
    code, _, _ = unforge_share(colleague, "pull")
    assert code == 1
    assert not (colleague / "many").exists()
    assert (colleague / "other.bin").read_text() == "1\n1\n"  # the rest came
    code, text, _ = unforge_share(project, "status", "--json")
    assert json.loads(text)["push"] == {"objects": 1, "bytes": SIZE}
    assert unforge_share(project, "push")[0] == 0
    assert s3.client().get_object(Bucket="team", Key=key)["Body"].read() == data

    # the same size but other bytes: the hash tells when it is fetched, and the message says what to delete
    s3.client().put_object(Bucket="team", Key=key, Body=data[:-1] + bytes([data[-1] ^ 1]))
    code, _, error = unforge_share(colleague, "pull")
    assert code == 1
    assert f"FAILED many: s3://team/{key} is damaged: delete it" in error
    assert not (colleague / "many").exists()
    plain = subprocess.run([*DVC, "pull", "-r", "team", "many"], cwd=colleague, capture_output=True, text=True)
    assert plain.returncode != 0  # DVC's own command notices it too, as `verify` is set
    s3.client().delete_object(Bucket="team", Key=key)
    assert unforge_share(project, "push")[0] == 0
    assert unforge_share(colleague, "pull")[0] == 0
    assert (colleague / "many/07.bin").read_bytes() == data


def test_a_damaged_cache_never_replaces_what_is_whole_in_the_store(
    s3: S3, project: Path, unforge_share: Callable[..., Any]
) -> None:
    assert unforge_share(project, "push")[0] == 0
    value = md5(project / "other.bin")
    place = project / ".dvc/cache/files/md5" / value[:2] / value[2:]
    place.chmod(0o644)
    place.write_bytes(b"9\n9\n more")
    lock = project / "dvc.lock"
    lock.write_text(lock.read_text().replace(f"{value}\n      size: 4", f"{value}\n      size: 9"))
    code, _, error = unforge_share(project, "push")
    assert code == 1
    assert "other.bin: its object in the cache is damaged" in error
    assert stored(s3)[value] == 4


def test_pull_leaves_work_that_is_saved_nowhere(
    s3: S3, project: Path, colleague: Path, unforge_share: Callable[..., Any]
) -> None:
    assert unforge_share(project, "push")[0] == 0
    (colleague / "other.bin").write_text("mine")
    code, _, error = unforge_share(colleague, "pull")
    assert code == 1
    assert "FAILED other.bin: it would replace files that are saved nowhere" in error
    assert (colleague / "other.bin").read_text() == "mine"
    assert (colleague / "one.bin").exists()
    with walk.alone(colleague):
        code, _, error = unforge_share(colleague, "pull")
    assert code == 2
    assert "another run is at work" in error


def test_credentials_stay_in_the_environment_and_the_remote_is_never_the_default(
    s3: S3, project: Path, colleague: Path, unforge_share: Callable[..., Any]
) -> None:
    assert unforge_share(project, "push")[0] == 0
    assert unforge_share(colleague, "pull")[0] == 0
    for folder in (project, colleague):
        for path in files(folder):
            data = path.read_bytes()
            assert b"devsecret" not in data, path
            assert b"devkey" not in data, path
        assert command("git", "status", "--porcelain", folder=folder).stdout == ""
    # a plain `dvc push` would take the restricted set along: it has no remote to go to
    plain = subprocess.run([*DVC, "push"], cwd=project, capture_output=True, text=True)
    assert plain.returncode != 0
    assert "no remote" in plain.stderr


def test_the_remote_follows_the_environment_and_keeps_what_a_user_set(
    s3: S3, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = project / ".dvc/config.local"
    assert share.remote(project) == "team"
    command(*DVC, "remote", "modify", "--local", "team", "read_timeout", "7", folder=project)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    share.remote(project)
    assert "endpointurl = http://127.0.0.1:9" in config.read_text()
    assert "read_timeout = 7" in config.read_text()
    before = config.stat().st_mtime_ns
    share.remote(project)
    assert config.stat().st_mtime_ns == before  # not written again: two processes may ask at once
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("UNFORGE_REMOTE", "s3://elsewhere/dvc")
    share.remote(project)
    assert "endpointurl" not in config.read_text()
    monkeypatch.delenv("UNFORGE_REMOTE")
    assert share.remote(project) == "team"
    config.write_text("['remote \"team\"']\nurl = /srv/team\n")
    with pytest.raises(ValueError, match="is not an address"):
        share.remote(project)
    config.unlink()
    with pytest.raises(ValueError, match="set UNFORGE_REMOTE"):
        share.remote(project)
