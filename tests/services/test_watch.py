"""The watch against a real S3 server: good uploads, hostile ones, kills, two watchers, a bad network."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import walk
from flows.incoming import inbox, intake, landing, lookout, uploads
from tests.services.proxy import Proxy
from tests.services.servers import ROOT, S3, PrefectServer
from tests.unit.flows.test_watch import BAD, EXE, SVG, bomb, files, picture, tree
from unforge import s3 as store

pytestmark = pytest.mark.services

INCOMING = "s3://team/incoming"
DVC = [sys.executable, "-m", "dvc"]
STAGES = {
    "ingest-columbia": {
        "cmd": "find data/raw/columbia/files -type f | LC_ALL=C sort > shards.txt",
        "deps": ["data/raw/columbia/SOURCE.json"],
        "outs": ["shards.txt"],
    },
    "table": {"cmd": "wc -l < shards.txt > table.txt", "deps": ["shards.txt"], "outs": ["table.txt"]},
    "unrelated": {"cmd": "cat code.txt > unrelated.txt", "deps": ["code.txt"], "outs": ["unrelated.txt"]},
}


def toy(folder: Path) -> Path:
    """A DVC repository with the stand-in of columbia, what follows from it, and a stage that does not."""
    (folder / "data/raw/columbia").mkdir(parents=True)
    (folder / "data/raw/columbia/SOURCE.json").write_text('{"source": "stand_in"}\n')
    for command in (["git", "init", "-q"], [*DVC, "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    (folder / "code.txt").write_text("1\n")
    (folder / ".gitignore").write_text("/*.txt\n.unforge/\n/data/raw/*/*\n")
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return toy(tmp_path / "project")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A workspace for looks alone."""
    (tmp_path / "bare").mkdir()
    return tmp_path / "bare"


def entry(path: str, data: bytes, **changes: object) -> dict[str, object]:
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), **changes}


def upload(s3: S3, place: str, contents: dict[str, bytes], manifest: bytes | None = None, **changes: object) -> None:
    """Put an upload: its files, then the manifest (a right one, but for `changes`)."""
    for name, data in contents.items():
        s3.client().put_object(Bucket=s3.bucket, Key=f"incoming/{place}/{name}", Body=data)
    if manifest is None:
        entries = [entry(name, data) for name, data in contents.items()]
        value = {"schema": 1, "dataset": place.split("/")[0], "files": entries}
        manifest = json.dumps({**value, **changes}).encode()
    s3.client().put_object(Bucket=s3.bucket, Key=f"incoming/{place}/manifest.json", Body=manifest)


def look(root: Path, patience: float = 3600, **changes: Any) -> dict[str, intake.Outcome]:
    """One look, in this process; the outcomes by upload."""
    store._client.cache_clear()
    changes = {"settle": 0, **changes}
    box = inbox.connect(INCOMING, None, root, patience)
    outcomes = intake.look(box, intake.Settings(root=root, patience=patience, **changes), lambda _: None)
    return {outcome.upload: outcome for outcome in outcomes}


def command(root: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m flows.watch`, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "flows.watch", "--incoming", INCOMING, "--settle", "0", *options],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def contents(s3: S3, key: str) -> bytes:
    data: bytes = s3.client().get_object(Bucket=s3.bucket, Key=key)["Body"].read()
    return data


def reasons(s3: S3, place: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(contents(s3, f"incoming-quarantine/{place}/reason.json"))
    return value


def raw(root: Path, dataset: str = "columbia") -> dict[str, bytes]:
    return tree(root / "data/raw" / dataset / "files")


def test_a_good_upload_is_taken_and_what_it_touches_is_run(
    s3: S3, project: Path, prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in prefect_server.environment.items():  # else each run of stages starts a server of its own
        monkeypatch.setenv(name, value)
    first, second = files("4cam_auth/a.tif", "4cam_auth/b.tif"), files("4cam_auth/c.tif")
    upload(s3, "columbia/monday", first)
    mine = files("images/a.png")
    upload(s3, "mine/monday", mine)
    dry = command(project, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "Would be downloaded and looked at: 2 files" in dry.stdout
    assert not s3.keys("incoming-")
    assert not raw(project)

    run = command(project, "--once")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "columbia/monday: taken, 2 new files" in run.stdout
    assert "mine: added; no table asks for it" in run.stdout
    assert raw(project) == first
    assert raw(project, "mine") == mine
    assert (project / "table.txt").read_text().strip() == "2"
    assert not (project / "unrelated.txt").exists()
    assert contents(s3, "incoming/columbia/monday/4cam_auth/a.tif") == first["4cam_auth/a.tif"]
    assert s3.keys("incoming-state") == [f"incoming-state/{name}/monday/done.json" for name in ("columbia", "mine")]
    assert not s3.keys("incoming-quarantine")

    # a second upload joins the first; the same file again is no new one; a third look has nothing to do
    upload(s3, "columbia/tuesday", {**second, "4cam_auth/a.tif": first["4cam_auth/a.tif"]})
    run = command(project, "--once")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "columbia/tuesday: taken, 1 new files, 1 there already" in run.stdout
    assert raw(project) == {**first, **second}
    assert (project / "table.txt").read_text().strip() == "3"
    state = {name: data for name, data in tree(project).items() if name != ".unforge/watch.lock"}
    run = command(project, "--once")
    assert (run.returncode, run.stdout) == (0, "Uploads: 0 taken, 0 quarantined, 0 left\n")
    assert {name: data for name, data in tree(project).items() if name != ".unforge/watch.lock"} == state
    known = [s3.key.encode(), s3.secret.encode()]
    written = [*tree(project).values(), *(contents(s3, key) for key in s3.keys("incoming-"))]
    assert [data for data in written if any(secret in data for secret in known)] == []


def test_hostile_uploads_are_quarantined_each_with_its_reason(s3: S3, bare: Path) -> None:
    good = files("4cam_auth/a.tif", "4cam_auth/b.tif")
    upload(s3, "columbia/1-good", good)
    a, b = "4cam_auth/x.tif", "4cam_auth/y.tif"
    one, two = files(a), files(b)

    # bad files in an upload: the good one beside them is taken
    bad = {f"4cam_auth/{name}": data for name, (data, _) in BAD.items()}
    entries = [entry(n, d) for n, d in {**one, **bad}.items() if not n.endswith(("extra.png", "bomb.png"))]
    wrong = {
        "4cam_auth/sha.png": picture(seed=7),
        "4cam_auth/size.png": picture(seed=8),
        "4cam_auth/extra.png": picture(),
    }
    entries += [entry("4cam_auth/sha.png", b"", size=len(wrong["4cam_auth/sha.png"]))]
    entries += [entry("4cam_auth/size.png", wrong["4cam_auth/size.png"], size=10**15)]
    entries += [entry("4cam_auth/bomb.png", bomb()), entry("4cam_auth/missing.png", b"x")]
    tricks = {
        "4cam_auth/\u202egnp.exe": EXE,
        "4cam_auth/a\x01b.png": picture(),
        "4cam_auth/A.tif": picture(),
        "e\u0301.svg": SVG,
    }
    upload(s3, "columbia/2-mixed", {**one, **bad, **wrong, **tricks}, files=entries)
    # another file under a name that is there
    upload(s3, "columbia/3-other", {"4cam_auth/a.tif": picture("TIFF", seed=99), **two})

    whole = {
        "traversal": {"files": [entry("../../../evil.tif", b"x")]},
        "absolute": {"files": [entry("/etc/evil.tif", b"x")]},
        "control": {"files": [entry("a\u202eb.tif", one[a])]},
        "twice": {"files": [entry(a, one[a]), entry(a, one[a])]},
        "case": {"files": [entry(a, one[a]), entry(a.upper(), one[a])]},
        "unknown-key": {"run": "rm -rf /"},
        "other-set": {"dataset": "casia1"},
        "all-or-nothing": {"files": [entry(a, one[a]), entry(b, b"no")], "partial": False},
    }
    for name, changes in whole.items():
        upload(s3, f"columbia/{name}", one, **changes)
    upload(s3, "columbia/large-manifest", one, manifest=b" " * 100 * 2**20)
    upload(s3, "columbia/no-json", one, manifest=b"\x80\x04cos\nsystem\n")
    upload(s3, "columbia/wrong-layout", {"flat.tif": one[a]})
    masked = {"images/a.png": picture(), "masks/a.png": SVG}
    upload(s3, "mine/mask", masked)
    upload(s3, "columbia/bad id", one)
    upload(s3, "Columbia!/u", one)
    upload(s3, "catnet/u", one)
    listed = {key: contents(s3, key) for key in s3.keys("incoming/") if "large" not in key}

    outcomes = look(bare, limits=uploads.Limits())
    assert outcomes["columbia/1-good"].taken == 2
    assert (outcomes["columbia/2-mixed"].state, outcomes["columbia/2-mixed"].taken) == ("taken", 1)
    assert outcomes["columbia/3-other"].taken == 1
    assert raw(bare) == {**good, **one, **two}
    assert {p.relative_to(bare).parts[0] for p in bare.rglob("*")} == {".unforge", "data"}
    assert sorted(p.name for p in (bare / "data/raw").iterdir()) == [".incoming", "columbia"]
    assert list((bare / landing.INCOMING).iterdir()) == []

    mixed = reasons(s3, "columbia/2-mixed")["files"]
    assert set(mixed) == {*bad, *wrong, *tricks, "4cam_auth/missing.png"}
    for name, words in {
        "4cam_auth/sha.png": "SHA-256", "4cam_auth/size.png": "by manifest.json 1000000000000000",
        "4cam_auth/extra.png": "not listed", "4cam_auth/missing.png": "not uploaded", "4cam_auth/bomb.png": "bomb",
        "4cam_auth/exe.jpg": "not a readable image", "4cam_auth/\u202egnp.exe": "not listed",
        "4cam_auth/list.csv": "neither an image",
    }.items():  # fmt: skip
        assert words in mixed[name], (name, mixed[name])
    assert s3.keys("incoming/columbia/2-mixed") == [f"incoming/columbia/2-mixed/{n}" for n in (a, "manifest.json")]
    for name, data in {**bad, **wrong, **tricks}.items():
        assert contents(s3, f"incoming-quarantine/columbia/2-mixed/files/{uploads.key(name)}") == data, name
    assert "other contents" in reasons(s3, "columbia/3-other")["files"]["4cam_auth/a.tif"]

    for name, words in {
        "traversal": "path traversal", "absolute": "absolute path", "control": "U+202E", "twice": "listed twice",
        "case": "only in case", "unknown-key": "run", "other-set": "it lies in the folder of columbia",
        "all-or-nothing": "all or nothing", "large-manifest": "104857600 bytes", "no-json": "cannot be read",
        "wrong-layout": "no file has a place in the layout", "bad%20id": "upload id",
    }.items():  # fmt: skip
        assert outcomes[f"columbia/{name}"].state == "quarantined", name
        assert words in reasons(s3, f"columbia/{name}")["reason"], reasons(s3, f"columbia/{name}")
        assert not s3.keys(f"incoming/columbia/{name.replace('%20', ' ')}/")
        assert s3.keys(f"incoming-quarantine/columbia/{name}/files/")
    assert "is not a dataset id" in reasons(s3, "Columbia%21/u")["reason"]
    assert "no files of its own" in reasons(s3, "catnet/u")["reason"]
    assert "used otherwise than with the files that are not taken" in reasons(s3, "mine/mask")["reason"]

    # nothing is lost: every object that was put is still somewhere, with its bytes
    there = {hashlib.sha256(contents(s3, key)).digest() for key in s3.keys("") if "large" not in key}
    assert {hashlib.sha256(data).digest() for data in listed.values()} <= there
    assert look(bare) == {}


def test_what_is_not_complete_is_left_alone(s3: S3, bare: Path) -> None:
    pictures = files("4cam_auth/a.tif", "4cam_auth/b.tif")
    upload(s3, "columbia/half", pictures)
    s3.client().delete_object(Bucket="team", Key="incoming/columbia/half/manifest.json")
    upload(s3, "columbia/coming", pictures)
    s3.client().delete_object(Bucket="team", Key="incoming/columbia/coming/4cam_auth/b.tif")
    upload(s3, "generated/var/u", {"a.png": picture()})
    s3.client().put_object(Bucket="team", Key="incoming/README.txt", Body=b"hello")
    before = s3.keys()
    outcomes = look(bare, settle=600)
    assert {name: outcome.state for name, outcome in outcomes.items()} == dict.fromkeys(
        ("columbia/half", "columbia/coming", "generated/var", "'README.txt'"), "left"
    )
    assert "no manifest.json: it is not complete" in outcomes["columbia/half"].text
    assert "1 files of the manifest are still to come, '4cam_auth/b.tif'" in outcomes["columbia/coming"].text
    assert "no stage for generated images" in outcomes["generated/var"].text
    # the store's times are of whole seconds: less than one may seem to have passed
    assert "nothing came" in look(bare, settle=600, report_after=-1)["columbia/half"].text
    assert s3.keys() == before
    assert not (bare / "data/raw/columbia").exists()

    # now they are; an upload id counts once
    upload(s3, "columbia/half", {}, files=[entry(name, data) for name, data in pictures.items()])
    upload(
        s3,
        "columbia/coming",
        {"4cam_auth/b.tif": pictures["4cam_auth/b.tif"]},
        files=[entry(n, d) for n, d in pictures.items()],
    )
    outcomes = look(bare, settle=600)
    assert (outcomes["columbia/coming"].taken, outcomes["columbia/half"].there) == (2, 2)
    done = s3.client().head_object(Bucket="team", Key="incoming-state/columbia/half/done.json")["LastModified"]
    deadline = time.monotonic() + 60
    while datetime.now(UTC).replace(microsecond=0) <= done:  # the server tells whole seconds
        assert time.monotonic() < deadline
        time.sleep(0.1)
    upload(s3, "columbia/half", files("4cam_auth/c.tif"))
    assert "new upload id" in look(bare)["columbia/half"].text
    assert raw(bare) == pictures


def test_quotas_are_looked_at_before_anything_is_downloaded(s3: S3, bare: Path) -> None:
    for name in ("u1", "u2", "u3"):
        upload(s3, f"columbia/{name}", files(f"4cam_auth/{name}.tif"))
    size = len(files("4cam_auth/u1.tif")["4cam_auth/u1.tif"])
    upload(s3, "columbia/many", files(*(f"4cam_auth/{i}.tif" for i in range(4))))
    upload(s3, "columbia/wide", {"4cam_auth/wide.tif": picture("TIFF", (400, 400)), **files("4cam_auth/w.tif")})
    before = s3.keys("incoming/columbia/many")
    limits = uploads.Limits(files=3, file=10 * size, run=2 * size + size // 2)
    outcomes = look(bare, limits=limits)
    states = {name: outcome.state for name, outcome in outcomes.items()}
    assert states == {f"columbia/{n}": s for n, s in {
        "u1": "taken", "u2": "taken", "u3": "left", "many": "quarantined", "wide": "left",
    }.items()}  # fmt: skip
    assert "downloaded its share" in outcomes["columbia/u3"].text
    assert "more than 3 objects" in reasons(s3, "columbia/many")["reason"]
    assert s3.keys("incoming/columbia/many") == before  # nothing beyond a quota is copied about
    outcomes = look(bare, limits=limits)
    assert outcomes["columbia/u3"].taken == 1
    assert outcomes["columbia/wide"].taken == 1
    assert set(reasons(s3, "columbia/wide")["files"]) == {"4cam_auth/wide.tif"}
    assert len(raw(bare)) == 4


DRIVER = """
import os, signal, sys
from pathlib import Path
from flows.incoming import inbox, intake
from unforge import s3

def look(root, patience, kill_at, stop_at):
    box = inbox.connect("s3://team/incoming", None, root, patience)
    requests = []
    def count(request, **_):
        requests.append(f"{request.method} {request.url}")
        if len(requests) == kill_at:
            print(requests[-1], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if stop_at and stop_at in requests[-1]:
            os.kill(os.getpid(), signal.SIGSTOP)
    for client in (box.client, s3._client(os.getpid())):
        client.meta.events.register("before-send.s3", count)
    settings = intake.Settings(root=root, settle=0, patience=patience)
    print([(o.upload, o.state, o.taken) for o in intake.look(box, settings, lambda _: None)], flush=True)

root, patience, stop_at = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
if stop_at != "kill":
    look(root, patience, 0, stop_at)
    sys.exit()
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        look(root, patience, int(line), "")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def driver(root: Path, stop_at: str = "", patience: float = 3600) -> subprocess.Popen[str]:
    """A process that looks once, and stops itself (SIGSTOP) before each request that has `stop_at` in it.

    With `stop_at` "kill" it takes numbers, and for each makes a process that kills itself before that request.
    """
    root.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(root), str(patience), stop_at],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_look_killed_at_any_request_is_finished_by_the_next_ones(s3: S3, bare: Path) -> None:
    good, bad = files("4cam_auth/a.tif", "4cam_auth/b.tif"), {"4cam_auth/exe.jpg": EXE, "list.csv": b"a,b\n"}
    upload(s3, "columbia/1-mixed", {**good, **bad})
    upload(s3, "columbia/2-refused", good, note=1)
    put = {hashlib.sha256(contents(s3, key)).digest() for key in s3.keys("")}
    kills: list[str] = []
    with driver(bare, "kill") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while True:
            print(len(kills) + 1, file=process.stdin, flush=True)
            said, status = process.stdout.readline(), int(process.stdout.readline())
            if status == 0:
                break
            assert status == -signal.SIGKILL
            kills.append(said.strip())
            # nothing is lost, and the set is whole or not there, whenever the kill came
            assert put <= {hashlib.sha256(contents(s3, key)).digest() for key in s3.keys("")}, kills
            assert raw(bare) in ({}, good), kills
            assert len(kills) < 80, kills
        process.stdin.close()
    assert {request.split()[0] for request in kills} == {"GET", "PUT", "HEAD", "DELETE"}
    assert any("claim.json" in request for request in kills)
    assert any("reason.json" in request for request in kills)
    assert any("done.json" in request for request in kills)
    look(bare)
    assert raw(bare) == good
    assert landing.pending(bare) == ["columbia"]
    assert list((bare / landing.INCOMING).iterdir()) == []
    assert s3.keys("incoming/") == [f"incoming/columbia/1-mixed/{n}" for n in (*sorted(good), "manifest.json")]
    assert set(reasons(s3, "columbia/1-mixed")["files"]) == set(bad)
    assert "note" in reasons(s3, "columbia/2-refused")["reason"]
    quarantine = {key.split("/files/")[1] for key in s3.keys("incoming-quarantine/") if "/files/" in key}
    assert quarantine == {*bad, *good, "manifest.json"}
    rows = json.loads((bare / "data/raw/columbia/SOURCE.json").read_text())["counts"]
    assert rows == {"authentic": {"ok": 2}}
    record = json.loads(contents(s3, "incoming-state/columbia/1-mixed/done.json"))
    assert record["files"] + record["there"] == 2


def test_two_watchers_never_take_the_same_upload(s3: S3, tmp_path: Path) -> None:
    sets = {f"columbia/u{i}": files(f"4cam_auth/{i}.tif") for i in range(8)}
    for place, pictures in sets.items():
        upload(s3, place, pictures)
    roots = [tmp_path / "one", tmp_path / "two"]
    processes = [driver(root) for root in roots]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    taken = [raw(root) for root in roots]
    assert not set(taken[0]) & set(taken[1])
    assert {**taken[0], **taken[1]} == {name: data for pictures in sets.values() for name, data in pictures.items()}
    owners = {place: json.loads(contents(s3, f"incoming-state/{place}/done.json"))["owner"] for place in sets}
    mine = {root: inbox.connect(INCOMING, None, root, 60).owner for root in roots}
    for place, pictures in sets.items():
        assert owners[place] == next(mine[root] for root in roots if set(pictures) <= set(raw(root)))
    assert s3.keys("incoming-state/") == [f"incoming-state/{place}/done.json" for place in sets]


def test_a_dead_claim_is_taken_over_and_its_owner_does_no_harm(s3: S3, tmp_path: Path) -> None:
    pictures = files("4cam_auth/a.tif")
    upload(s3, "columbia/u", {**pictures, "list.csv": b"x"})
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    process = driver(first, "a.tif")  # before it downloads
    try:
        deadline = time.monotonic() + 120
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        outcome = look(second)["columbia/u"]
        assert outcome.state == "left"
        assert "another watch (" in outcome.text
        while (outcome := look(second, patience=1)["columbia/u"]).state == "left":
            assert "another watch (" in outcome.text
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert outcome.taken == 1
    finally:
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=120)
    assert output == "[('columbia/u', 'left', 0)]\n"
    assert raw(second) == pictures
    assert raw(first) == {}
    assert s3.keys("incoming-quarantine/columbia/u/files") == ["incoming-quarantine/columbia/u/files/list.csv"]


def test_a_store_that_does_not_answer_is_said_and_the_next_look_works(s3: S3, project: Path) -> None:
    upload(s3, "columbia/u", files("4cam_auth/a.tif"))
    with Proxy(s3.ports[0]) as proxy:
        down = f"http://127.0.0.1:{proxy.port}"
    secret = {"AWS_SECRET_ACCESS_KEY": "wrong-and-secret"}
    for environment, words in [
        ({"AWS_ENDPOINT_URL": down}, "Could not connect"),
        (secret, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "nobody-known"}, "InvalidAccessKeyId"),
    ]:
        run = command(project, "--once", **environment)
        assert run.returncode == 2, run.stdout + run.stderr
        assert words in run.stderr
        assert len(run.stderr.splitlines()) == 1, run.stderr
        assert not any(value in run.stdout + run.stderr for value in ("wrong-and-secret", "nobody-known", s3.secret))
    run = command(project, "--once", "--incoming", "s3://nobucket/incoming")
    assert (run.returncode, "NoSuchBucket" in run.stderr) == (2, True), run.stderr
    assert not raw(project)
    assert look(project)["columbia/u"].taken == 1


def test_a_bad_network_costs_time_and_no_file(s3: S3, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {f"4cam_auth/{i}.tif": picture("TIFF", (300, 300), seed=i) for i in range(4)}
    with Proxy(s3.ports[0]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        upload(s3, "columbia/u1", {**pictures, "list.csv": b"x"})
        proxy.delay(0.02)
        proxy.truncate(100_000)  # in the middle of a picture
        assert look(bare)["columbia/u1"].taken == 4
        assert raw(bare) == pictures

        upload(s3, "columbia/u2", files("4cam_auth/late.tif"))
        proxy.cut()
        with pytest.raises(ConnectionError):
            look(bare)
        proxy.restore()
        assert look(bare)["columbia/u2"].taken == 1
    assert set(raw(bare)) == {*pictures, "4cam_auth/late.tif"}


def test_an_upload_waits_while_stages_read_the_set(s3: S3, project: Path) -> None:
    upload(s3, "columbia/u", files("4cam_auth/a.tif"))
    said: list[str] = []
    with walk.alone(project):
        outcome = look(project)["columbia/u"]
        assert (outcome.state, outcome.error) == ("left", False)
        assert "another run is at work" in outcome.text
    assert not s3.keys("incoming-state")
    assert look(project)["columbia/u"].taken == 1

    # killed here, before what it touches was run: the next look does it, though no upload is new
    stages: list[str] = []

    def run(names: list[str]) -> list[str]:
        stages.extend(names)
        return []

    with walk.alone(project):
        assert lookout.reproduce(project, run, said.append) == []
    assert "columbia: added; what they touch waits" in said[-1]

    def busy(names: list[str]) -> list[str]:
        raise ValueError("another run is at work")

    with pytest.raises(ValueError, match="at work"):
        lookout.reproduce(project, busy, said.append)
    assert stages == []
    assert lookout.reproduce(project, run, said.append) == []
    assert stages == ["ingest-columbia", "table"]
    assert landing.pending(project) == []
    assert lookout.reproduce(project, run, said.append) == []
    assert len(stages) == 2


FLOW = """
import sys
from flows.watch import watch
watch(incoming="s3://team/incoming", root=sys.argv[1], settle=0)
"""


@pytest.fixture
def flows(prefect_server: PrefectServer) -> Any:
    environment = {**prefect_server.environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}

    def run(root: Path) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]], str]:
        """The flow in a process of its own; its table, and the state of its run."""
        process = subprocess.run(
            [sys.executable, "-c", FLOW, str(root)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )
        found = ask("artifacts/filter", {"artifacts": {"key": {"any_": ["watch"]}}, "sort": "CREATED_DESC"})[0]
        state = ask("flow_runs/filter", {"flow_runs": {"id": {"any_": [found["flow_run_id"]]}}})[0]["state"]["type"]
        return process, json.loads(found["data"]), state

    def ask(path: str, query: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{prefect_server.api}/{path}", json.dumps(query).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    return run


def test_the_flow_shows_what_it_took_and_fails_with_a_stage(s3: S3, project: Path, flows: Any) -> None:
    upload(s3, "columbia/u1", {**files("4cam_auth/a.tif"), "list.csv": b"image\n"})
    broken = {**STAGES, "table": {**STAGES["table"], "cmd": "echo no such column; exit 3"}}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": broken}))
    process, table, state = flows(project)
    assert process.returncode != 0
    assert state == "FAILED"
    assert [(row["upload"], row["state"], row["files"], row["quarantined"]) for row in table] == [
        ("columbia/u1", "taken", "1", "1")
    ]
    assert "'list.csv': neither an image" in table[0]["what"]
    assert "no such column" in process.stderr
    assert set(raw(project)) == {"4cam_auth/a.tif"}
    assert (project / "shards.txt").is_file()
    assert s3.secret not in process.stdout + process.stderr

    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    upload(s3, "columbia/u2", files("4cam_auth/b.tif"))
    process, table, state = flows(project)
    assert process.returncode == 0, process.stderr
    assert state == "COMPLETED"
    assert [row["upload"] for row in table] == ["columbia/u2"]
    assert (project / "table.txt").read_text().strip() == "2"
