"""The stage scripts on a small project of made images: train, backbone, evaluate."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from unforge import backbones, paths, profiles, scores, shards
from unforge.train import checkpoint, loop
from unforge.types import Sample

ROOT = Path(__file__).resolve().parents[3]
RUN = "sparsevit/catnet/stem/s1"
MEMBERS = ("casia2", "fantasticreality", "imd2020", "tampcoco")


def _samples(name: str, split: str | None) -> Iterator[Sample]:
    for i in range(6):
        rng = np.random.default_rng(i)
        image, mask = rng.integers(0, 256, (80, 72, 3), dtype=np.uint8), np.zeros((80, 72), bool)
        mask[20:50, 10:40] = True
        image[mask] //= 2
        yield Sample(
            key=f"{name}-{i}", image=shards.encode_png(image), extension="png", label=int(i > 0),
            mask=shards.encode_png(mask) if i else None, kind="splice" if i else "authentic", source=(f"p{i}",),
            unit=f"{name}-{i}", split=split or ("val" if i == 5 else "train"),
        )  # fmt: skip


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[profiles.Profile]:
    """A project with a profile `tiny`, and shards and a protocol for it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Path("profiles").mkdir()
    values = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text(encoding="utf-8"))
    values["train"]["sparsevit"] = {
        "steps": 3, "batch": 2, "crop": 64, "validate_every": 2, "validation_images": 2, "checkpoint_every": 1,
    }  # fmt: skip
    values["backbone"]["autoencoder"] = {"steps": 2, "batch": 2, "crop": 64, "checkpoint_every": 1}
    Path("profiles/tiny.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    rows = []
    for name, split in [*((member, None) for member in MEMBERS), ("casia1", "test"), ("photos", "pretrain")]:
        shards.write(paths.shards("tiny", name), _samples(name, split), name=name, data="stand_in", version="1")
        rows += (
            [
                {"dataset": name, "member": MEMBER.get(name, name), "key": s.key, "split": s.split}
                for s in _samples(name, split)
            ]
            if split is None
            else []
        )
    members = paths.protocol("tiny", "catnet") / "members.parquet"
    members.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), members)
    yield profiles.load("tiny")
    torch.use_deterministic_algorithms(False)


MEMBER = {"tampcoco": "tampcoco/cm"}


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"stage_{name}", ROOT / "stages" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_a_run_is_trained_and_scored_and_again_to_the_same_bytes(profile: profiles.Profile) -> None:
    train, evaluate = _script("train"), _script("evaluate")
    trained, scored = [], []
    for _ in range(2):
        train.stage(RUN, "", {}, profile)
        evaluate.stage(RUN, ["casia1"], profile)
        trained.append(_files(paths.run("tiny", RUN)))
        scored.append(_files(paths.scores("tiny", RUN)))
    assert trained[0] == trained[1]
    assert scored[0] == scored[1]
    assert sorted(trained[0]) == ["config.json", "log.parquet", "meta.json", "model.safetensors"]
    assert sorted(scored[0]) == ["casia1.parquet", "meta.json", "samples.parquet"]
    meta = paths.read_json(paths.run("tiny", RUN) / "meta.json")
    assert meta["seed"] == profile.seed + 1
    assert meta["config"]["pretraining"] == "none"
    assert meta["config"]["chosen_step"] in (2, 3)
    assert set(meta["inputs"]) == {
        f"data/shards/tiny/{m}" for m in ("casia2", "fantasticreality", "imd2020", "tampcoco")
    }
    rows = scores.read(paths.scores("tiny", RUN) / "casia1.parquet")
    assert rows["key"].to_pylist() == [f"casia1-{i}" for i in range(6)]
    assert scores.metadata(rows)["variant"] == "stem"
    assert not Path(".unforge/resume").is_dir() or not any(Path(".unforge/resume").iterdir())


def test_a_run_that_stops_continues_unless_something_changed(
    profile: profiles.Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = _script("train")
    train.stage(RUN, "", {}, profile)
    expected = _files(paths.run("tiny", RUN))
    starts: list[int] = []
    save, fit = checkpoint.save, loop.fit

    def dies(where: Path, state: dict[str, object]) -> None:
        save(where, state)
        if state["run"]["step"] == 2:  # type: ignore[index]
            raise KeyboardInterrupt

    def watched(*args: object, **options: object) -> loop.Fitted:
        fitted = fit(*args, **options)  # type: ignore[arg-type]
        starts.append(fitted.resumed)
        return fitted

    monkeypatch.setattr("unforge.train.run.fit", watched)
    monkeypatch.setattr(checkpoint, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        train.stage(RUN, "", {}, profile)
    monkeypatch.setattr(checkpoint, "save", save)
    assert _files(paths.run("tiny", RUN)) == expected  # untouched: nothing half-written takes its place
    text = Path("profiles/tiny.yaml").read_text(encoding="utf-8")
    Path("profiles/tiny.yaml").write_text(text.replace("crop: 64", "crop: 56"), encoding="utf-8")
    train.stage(RUN, "", {}, profiles.load("tiny"))
    assert starts == [0]
    train.stage(RUN, "", {}, profile)
    assert starts == [0, 2]
    assert _files(paths.run("tiny", RUN)) == expected


def test_constants_need_no_training(profile: profiles.Profile) -> None:
    _script("train").stage("constant/all", "", {}, profile)
    _script("evaluate").stage("constant/all", ["casia1"], profile)
    assert sorted(_files(paths.run("tiny", "constant/all"))) == [
        "config.json",
        "log.parquet",
        "meta.json",
        "model.safetensors",
    ]
    rows = scores.read(paths.scores("tiny", "constant/all") / "casia1.parquet").to_pylist()
    assert all((row["fn"], row["tn"]) == (0, 0) for row in rows)
    assert [row["tp"] for row in rows] == [0] + 5 * [900]


def test_the_autoencoder_learns_from_the_pool(profile: profiles.Profile) -> None:
    _script("backbone").stage("autoencoder", profile)
    folder = paths.backbone("tiny", "autoencoder")
    image = np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)
    assert backbones.load(folder).render(image).shape == image.shape
    meta = paths.read_json(folder / "meta.json")
    assert meta["config"]["members"][0]["images"] == 6
    assert list(meta["inputs"]) == ["data/shards/tiny/photos"]


def test_user_errors_say_what_to_do(profile: profiles.Profile) -> None:
    train, evaluate = _script("train"), _script("evaluate")
    with pytest.raises(ValueError, match="name a protocol"):
        train.stage("sparsevit/full", "", {}, profile)
    with pytest.raises(ValueError, match="no variant"):
        train.stage("sparsevit/catnet/stemm/s0", "", {}, profile)
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        evaluate.stage("sparsevit/catnet/full/s7", ["casia1"], profile)
