"""Training from shards on a real S3 server: the same weights as from a disk, and errors that say what is wrong."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import copy_project
from tests.services.proxy import Proxy
from tests.services.servers import ROOT, S3
from unforge import paths, shards
from unforge import s3 as store
from unforge.datasets import catnet
from unforge.types import Sample

pytestmark = pytest.mark.services

RUN = "sparsevit/catnet/stem/s0"
MEMBERS = ("casia2", "fantasticreality", "imd2020", "tampcoco")
SHARDS = "s3://team/shards"


def made(name: str) -> Iterator[Sample]:
    for i in range(6):
        rng = np.random.default_rng([i, len(name)])
        image, mask = rng.integers(0, 256, (80, 72, 3), dtype=np.uint8), np.zeros((80, 72), bool)
        mask[20:50, 10:40] = True
        image[mask] //= 2
        yield Sample(
            key=f"{name}-{i}", image=shards.encode_png(image), extension="png", label=int(i > 0),
            mask=shards.encode_png(mask) if i else None, kind="splice" if i else "authentic", source=(f"p{i}",),
            unit=f"{name}-{i}", split="val" if i == 5 else "train",
        )  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/shards/small`: four sets of three tars each."""
    folder = tmp_path_factory.mktemp("sets")
    for name in MEMBERS:
        shards.write(folder / name, made(name), name=name, data="stand_in", version="1", max_bytes=30_000)
        assert len(list((folder / name).glob("*.tar"))) == 3
    return folder


def upload(server: S3, sets: Path, prefix: str, names: Iterable[str] = MEMBERS, **changed: bytes) -> str:
    """Put sets below a prefix, `changed` files (by the name without suffix) with other bytes; the address."""
    for path in sorted(path for name in names for path in (sets / name).iterdir()):
        key = f"{prefix}/small/{path.relative_to(sets).as_posix()}"
        data = changed.get(path.stem.replace("-", "_"), path.read_bytes())
        server.client().put_object(Bucket=server.bucket, Key=key, Body=data)
    return f"s3://{server.bucket}/{prefix}"


@pytest.fixture(scope="module")
def uploaded(s3_server: S3, sets: Path) -> S3:
    s3_server.clear()
    assert upload(s3_server, sets, "shards") == SHARDS
    return s3_server


@pytest.fixture
def there(uploaded: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The sets on the server, and none in the working directory."""
    monkeypatch.chdir(tmp_path)
    fresh(monkeypatch, **uploaded.environment, UNFORGE_SHARDS=SHARDS)
    return uploaded


def fresh(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    """Other variables for the clients of this process, which are made once."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    store._client.cache_clear()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project at a tiny scale, without shards."""
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    file = root / "profiles/small.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    values["train"]["sparsevit"] = {
        "steps": 6, "batch": 4, "crop": 64, "validate_every": 3, "validation_images": 2, "checkpoint_every": 100,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    rows = []
    for name in MEMBERS:
        member = next(member for member in catnet.MEMBERS if member.partition("/")[0] == name)
        rows += [{"member": member, "key": s.key, "split": s.split} for s in made(name)]
    members = root / paths.protocol("small", "catnet") / "members.parquet"
    members.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), members)
    return root


def train(project: Path, workers: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python stages/train.py` as a process; its run is removed first."""
    shutil.rmtree(project / paths.run("small", RUN), ignore_errors=True)
    file = project / "profiles/small.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    values["machine"]["workers"] = workers
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "stages/train.py", RUN, "--profile", "small"]
    return subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, timeout=240)


def weights(project: Path, **options: object) -> bytes:
    done = train(project, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stdout + done.stderr
    return (project / paths.run("small", RUN) / "model.safetensors").read_bytes()


def test_weights_are_those_of_the_local_shards(there: S3, sets: Path, project: Path) -> None:
    local = project / "data/shards/small"
    shutil.copytree(sets, local)
    expected = weights(project, UNFORGE_SHARDS="")
    shutil.rmtree(local)
    with Proxy(there.ports[0]) as proxy:
        assert weights(project, AWS_ENDPOINT_URL=proxy.url) == expected
        assert proxy.passed > 6 * 4 * 5_000, "images came from the server"
        before = proxy.connections
        assert weights(project, workers=2, AWS_ENDPOINT_URL=proxy.url) == expected
        assert proxy.connections >= before + 3, "each process has connections of its own"
    assert not local.exists()


def test_webdataset_reads_the_same_samples(there: S3, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs
    import webdataset

    files = s3fs.S3FileSystem()
    schemes = importlib.import_module("webdataset.gopen").gopen_schemes
    monkeypatch.setitem(schemes, "s3", lambda url, mode="rb", bufsize=8192, **_: files.open(url, "rb"))
    urls = sorted(f"s3://{path}" for path in files.glob(f"{SHARDS}/small/casia2/*.tar"))
    assert len(urls) == 3
    ours = shards.ShardSet(paths.shards("small", "casia2"))
    assert ours.url
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == ours.keys
    for sample, truth in zip(found, made("casia2"), strict=True):
        row = ours.row(truth.key)
        assert sample["png"] == ours.image_bytes(truth.key) == truth.image
        assert sample.get("mask.png") == ours.mask_bytes(truth.key) == truth.mask
        about = json.loads(sample["json"])
        assert {name: about[name] for name in ("key", "label", "kind", "source", "unit", "split")} == {
            name: row[name] for name in ("key", "label", "kind", "source", "unit", "split")
        }


def test_a_truncated_tar_is_noticed(there: S3, sets: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (sets / "imd2020/shard-000001.tar").read_bytes()
    half = upload(there, sets, "half", shard_000001=data[: len(data) // 2])
    monkeypatch.setenv("UNFORGE_SHARDS", half)
    ours = shards.ShardSet(paths.shards("small", "imd2020"))
    truth = {sample.key: sample.image for sample in made("imd2020")}
    whole = [key for key in ours.keys if ours.row(key)["shard"] != "shard-000001.tar"]
    assert len(whole) == 4
    assert all(ours.image_bytes(key) == truth[key] for key in whole)
    cut = ours.keys[3]  # the last of its tar
    with pytest.raises(ValueError, match=f"{half}/small/imd2020/shard-000001.tar: image of {cut} is not what was"):
        ours.image_bytes(cut)

    done = train(project)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(rf"train {RUN}: {half}/small/\w+/shard-000001\.tar: \w+ of \S+ is not what was written", last)
    assert "Traceback" not in done.stderr
    assert not (project / paths.run("small", RUN)).exists()


def test_other_bytes_of_the_same_size_are_noticed(there: S3, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = shards.ShardSet(sets / "casia2").row("casia2-1")
    data = bytearray((sets / "casia2/shard-000000.tar").read_bytes())
    data[row["image_offset"] + 1000] ^= 1
    monkeypatch.setenv("UNFORGE_SHARDS", upload(there, sets, "other", ["casia2"], shard_000000=bytes(data)))
    ours = shards.ShardSet(paths.shards("small", "casia2"))
    assert ours.image_bytes("casia2-0") == next(made("casia2")).image
    with pytest.raises(ValueError, match="image of casia2-1 is not what was written"):
        ours.image_bytes("casia2-1")


def test_slow_and_broken_answers_are_asked_for_again(there: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(there.ports[0]) as proxy:
        fresh(monkeypatch, AWS_ENDPOINT_URL=proxy.url)
        proxy.delay(0.1)
        ours = shards.ShardSet(paths.shards("small", "casia2"))
        assert ours.image_bytes("casia2-0") == next(made("casia2")).image
        proxy.restore()
        for sample in made("casia2"):
            connections = proxy.connections
            proxy.truncate(5_000)  # in the middle of the image
            assert ours.image_bytes(sample.key) == sample.image
            assert proxy.connections > connections


def test_an_answer_that_breaks_off_in_its_header_is_asked_for_again(there: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(there.ports[0]) as proxy:
        fresh(monkeypatch, AWS_ENDPOINT_URL=proxy.url)
        ours = shards.ShardSet(paths.shards("small", "casia2"))
        for size in (12, 20, 60):
            proxy.truncate(size)
            assert ours.image_bytes("casia2-0") == next(made("casia2")).image


def test_a_network_that_is_gone_ends_in_an_error_that_names_the_object(
    there: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ATTEMPTS", 1)  # of five attempts each, which take more than a minute
    with Proxy(there.ports[0]) as proxy:
        fresh(monkeypatch, AWS_ENDPOINT_URL=proxy.url)
        ours = shards.ShardSet(paths.shards("small", "casia2"))
        proxy.cut()
        with pytest.raises(OSError, match=f"{SHARDS}/small/casia2/shard-000000.tar: ") as caught:
            ours.image_bytes("casia2-0")
        assert there.secret not in str(caught.value)
        proxy.restore()
        assert ours.image_bytes("casia2-0") == next(made("casia2")).image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"UNFORGE_SHARDS": "s3://team/elsewhere"}, "s3://team/elsewhere/small/casia2/manifest.parquet is not there"),
        ({"UNFORGE_SHARDS": "s3://nothing/shards"}, "s3://nothing/shards/small/casia2/manifest.parquet is not there"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, f"{SHARDS}/small/casia2/manifest.parquet: .*InvalidAccessKeyId"),
        ({"AWS_SECRET_ACCESS_KEY": "wr0ng"}, f"{SHARDS}/small/casia2/manifest.parquet: .*SignatureDoesNotMatch"),
        ({"UNFORGE_SHARDS": "team/shards"}, "is not an address: s3://bucket/prefix"),
        ({"UNFORGE_SHARDS": ""}, "data/shards/small/casia2 is not there: `dvc repro` makes it"),
    ],
)
def test_what_is_wrong_is_said(
    there: S3, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    fresh(monkeypatch, **change)
    with pytest.raises((OSError, ValueError), match=message) as caught:
        shards.ShardSet(paths.shards("small", "casia2"))
    assert not any(secret in str(caught.value) for secret in (there.key, there.secret, "wr0ng", "nobody"))


def test_a_damaged_manifest_is_noticed(there: S3, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (sets / "casia2/manifest.parquet").read_bytes()
    place = upload(there, sets, "damaged", ["casia2"], manifest=data[: len(data) // 2])
    monkeypatch.setenv("UNFORGE_SHARDS", place)
    with pytest.raises(ValueError, match=f"{place}/small/casia2/manifest.parquet is damaged"):
        shards.ShardSet(paths.shards("small", "casia2"))
