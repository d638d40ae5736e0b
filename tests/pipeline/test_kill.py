"""Stages killed with SIGKILL, through `dvc repro`: what goes on, what starts anew, and what is left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from tests.conftest import copy_project
from unforge import paths, shards
from unforge.datasets import catnet
from unforge.types import Sample

ROOT = Path(__file__).resolve().parents[2]
RUN = "sparsevit/catnet/stem/s0"
STAGE = "papers/sparsevit/dvc.yaml:train-catnet-stem-s0"
MEMBERS = ("casia2", "fantasticreality", "imd2020", "tampcoco")
STATES = Path(".unforge/resume")
STEPS = 60
"""Long enough for a kill to come before the end on any machine."""
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT / "src"),
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def made(name: str) -> Iterator[Sample]:
    for i in range(6):
        rng = np.random.default_rng(i)
        image, mask = rng.integers(0, 256, (80, 72, 3), dtype=np.uint8), np.zeros((80, 72), bool)
        mask[20:50, 10:40] = True
        image[mask] //= 2
        yield Sample(
            key=f"{name}-{i}", image=shards.encode_png(image), extension="png", label=int(i > 0),
            mask=shards.encode_png(mask) if i else None, kind="splice" if i else "authentic", source=(f"p{i}",),
            unit=f"{name}-{i}", split="val" if i == 5 else "train",
        )  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A DVC repository with the real stages at a tiny scale, the training data made up."""
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        file = Path("profiles/small.yaml")
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        values["train"]["sparsevit"] = {
            "steps": STEPS, "batch": 2, "crop": 64, "validate_every": 30, "validation_images": 2, "checkpoint_every": 2,
        }  # fmt: skip
        values["ingest"]["casia1"] = {"images": None, "size": 64}
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        rows = []
        for name in MEMBERS:
            shards.write(paths.shards("small", name), made(name), name=name, data="stand_in", version="1")
            member = next(member for member in catnet.MEMBERS if member.partition("/")[0] == name)
            rows += [{"member": member, "key": s.key, "split": s.split} for s in made(name)]
        members = paths.protocol("small", "catnet") / "members.parquet"
        members.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), members)
        casia1(Path("data/raw/casia1"))
        shutil.copy(ROOT / ".gitignore", root)
        shutil.copy(ROOT / ".dvcignore", root)
        for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
            subprocess.run(command, check=True)
        subprocess.run([sys.executable, "-m", "unforge.cli", "catalogue"], check=True, env=ENVIRONMENT)
        yield root


def casia1(folder: Path) -> None:
    """400 authentic images of a real set, as `unforge data add` leaves them."""
    authentic = folder / "files" / "Au"
    authentic.mkdir(parents=True)
    for i in range(400):
        image = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(image).save(authentic / f"Au_ani_{i:04d}.jpg")
    paths.write_json(folder / "SOURCE.json", {"source": "real", "module": "casia1", "version": "1"})


def repro(stage: str, *options: str) -> subprocess.Popen[str]:
    """`dvc repro` of one stage, in a process group of its own."""
    command = [sys.executable, "-m", "dvc", "repro", "-s", *options, stage]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]


def finish(process: subprocess.Popen[str]) -> str:
    """Output of a stage that ends well."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def kill(process: subprocess.Popen[str], when: Callable[[], bool]) -> None:
    """SIGKILL to DVC, the shell and the stage as soon as `when` holds."""
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()


def step() -> int:
    """Step of the newest state that lies in the resume folder; 0 without one."""
    found = sorted(STATES.glob("*/*/state.pt"), key=lambda path: path.stat().st_mtime_ns)
    return int(torch.load(found[-1], weights_only=True)["run"]["step"]) if found else 0


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def continued(output: str) -> int:
    match = re.search(rf"train/{RUN}: continues from step (\d+) of \d+", output)
    return int(match[1]) if match else 0


def test_a_killed_run_continues_to_the_same_weights(project: Path) -> None:
    target = paths.run("small", RUN)
    kill(repro(STAGE), lambda: any(STATES.glob("*/*/state.pt")))
    assert not target.exists()
    reached = step()
    assert 2 <= reached < STEPS

    # with crops of another size it is another run: it begins anew and leaves the state alone
    profile = Path("profiles/small.yaml")
    text = profile.read_text(encoding="utf-8")
    profile.write_text(text.replace("crop: 64", "crop: 72"), encoding="utf-8")
    assert profile.read_text(encoding="utf-8") != text
    assert continued(finish(repro(STAGE))) == 0
    other = files(target)

    profile.write_text(text, encoding="utf-8")
    output = finish(repro(STAGE))
    assert continued(output) == reached
    assert [path for path in STATES.rglob("*") if path.is_file()] == []
    assert list(STATES.iterdir()) == []
    resumed = files(target)
    assert resumed["model.safetensors"] != other["model.safetensors"]

    assert continued(finish(repro(STAGE, "-f", "--no-run-cache"))) == 0
    assert files(target) == resumed  # weights, log, configuration: as if nothing had happened


def test_a_killed_ingest_leaves_nothing_that_looks_finished(project: Path) -> None:
    target = paths.shards("small", "casia1")

    def half() -> bool:
        return sum(path.stat().st_size for path in target.parent.glob(".casia1.*/*.tar")) > 100_000

    kill(repro("ingest-casia1"), half)
    assert not target.exists()
    lock = Path("dvc.lock")
    assert not lock.exists() or "ingest-casia1" not in lock.read_text(encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="`dvc repro` makes it"):
        shards.ShardSet(target)
    finish(repro("ingest-casia1"))
    assert shards.ShardSet(target).keys == [f"Au_ani_{i:04d}" for i in range(400)]
    assert sorted(path.name for path in target.parent.iterdir()) == ["casia1", *MEMBERS]
