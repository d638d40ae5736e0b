"""Where runs look: which frames are chosen, and that maps are the method's own."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit import toy
from unforge import demand, evaluate, methods, paths, shards
from unforge.types import Sample

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def stage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("attention_stage", ROOT / "stages" / "attention.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frames(redistribute: bool) -> None:
    """Four real and two fake videos of two frames each."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            key=f"v{video}_{frame}", extension="png", mask=None, label=int(video > 3), kind="unknown",
            image=shards.encode_png(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)),
            source=(f"p{video}",), unit=f"v{video}", split="test",
        )
        for video in range(6)
        for frame in range(2)
    ]  # fmt: skip
    folder = paths.shards("small", "cdf_v2")
    shards.write(folder, samples, name="cdf_v2", data="stand_in", version="1", redistribute=redistribute)


def saved(name: str, variant: str) -> Any:
    torch.manual_seed(0)
    config = methods.config("qtfp", variant, "small")
    method, folder = methods.build("qtfp", config).eval(), paths.run("small", name)
    folder.mkdir(parents=True)
    methods.save(method, "qtfp", variant, config, folder)
    paths.write_json(folder / "meta.json", paths.meta({"pretraining": "none"}, 0, {}))
    return method


@pytest.mark.parametrize("redistribute", [True, False])
def test_frames_and_maps(
    stage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redistribute: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("profile: small\nseed: 1\n")
    frames(redistribute)
    runs = {f"qtfp/ffpp/{variant or 'full'}/s0": variant for variant in ("", "effort")}
    loaded = {name: saved(name, variant) for name, variant in runs.items()}
    stage.stage("qtfp", ["cdf_v2"], list(runs), 3, toy.profile())
    path = Path(demand.attention("small", "qtfp"))
    table = pq.read_table(path)
    rows = table.to_pylist()
    shown = [row for row in rows if row["run"] == ""]
    assert Counter(row["label"] for row in shown) == {0: 3, 1: 2}
    assert len({row["key"].partition("_")[0] for row in shown}) == 5, "each of another video"
    assert {row["image"] is None for row in shown} == {not redistribute}
    held = shards.ShardSet(paths.shards("small", "cdf_v2"))
    for row in rows:
        if row["run"]:
            image = evaluate.to_tensor(held.image(row["key"]), torch.device("cpu"))
            seen = loaded[row["run"]].predict(image, extras=True).extras[row["extra"]][0, 0, 0]
            assert row["side"] == len(seen)
            assert row["weights"] == pytest.approx(seen.flatten().tolist(), abs=1e-6)
            assert sum(row["weights"]) == pytest.approx(1, abs=1e-4)
    assert len(rows) == 5 + 5 * 2 * 2
    digest = paths.sha256(path)
    stage.stage("qtfp", ["cdf_v2"], list(runs), 3, toy.profile())
    assert paths.sha256(path) == digest
