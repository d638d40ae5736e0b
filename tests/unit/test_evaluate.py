from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from unforge import evaluate, paths, scores, shards
from unforge.shards import ShardSet
from unforge.types import Prediction, Sample

SIZES = [(40, 56), (33, 47), (40, 56), (64, 24), (17, 19), (48, 48), (40, 56)]
RUN = evaluate.Run(
    name="paper/protocol/full/s1",
    sha256="abc",
    seed=1,
    about={"method": "fake", "variant": "", "scale": "small", "pretraining": "none", "recipe": "test"},
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Seven images of several sizes, two of them authentic, keys not in order of writing."""
    rng = np.random.default_rng(0)
    samples = []
    for i, (height, width) in enumerate(SIZES):
        mask = np.zeros((height, width), bool)
        mask[height // 4 : height // 2, width // 4 : 3 * width // 4] = True
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        label = int(i % 3 != 0) if i < 6 else 1
        samples.append(
            Sample(
                key=f"k{(i * 3) % 7}",
                image=shards.encode_png(image),
                extension="png",
                kind="splice" if label else "authentic",
                mask=shards.encode_png(mask) if label else None,
                label=label,
                source=(f"p{i}",),
                unit=f"u{i // 2}",
                split="test",
            )
        )
    path = tmp_path_factory.mktemp("sets") / "fake"
    shards.write(path, samples, name="fake", data="stand_in", version="7")
    return ShardSet(path)


class Fake(nn.Module):
    """Half-size map of a fixed random convolution; remembers what it was shown."""

    EXTRAS = ("attention_last",)

    def __init__(self, **gives: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        self.gives, self.shapes = gives, []

    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        assert image.shape[0] == 1
        assert 0 <= float(image.min()) <= float(image.max()) <= 1
        self.shapes.append(tuple(image.shape[2:]))
        mask = functional.avg_pool2d(20 * self.conv(image), 2).sigmoid()
        attention = torch.eye(6).view(1, 2, 3, 2, 3)
        values: dict[str, Any] = {"mask": mask, "extras": {"attention_last": attention} if extras else {}}
        return Prediction(**{**values, **self.gives})


def _run(shard_set: ShardSet, method: Any = None, **options: Any) -> evaluate.Scored:
    return evaluate.evaluate(method or Fake(), shard_set, run=RUN, testset="fake", device=CPU, **options)


def test_rows_equal_scikit_learn_on_the_saved_maps(shard_set: ShardSet) -> None:
    method = Fake()
    scored = _run(shard_set, method)
    assert [row["key"] for row in scored.rows] == [f"k{i}" for i in range(7)]
    for row in scored.rows:
        mask = shard_set.mask(row["key"])
        tensor = torch.from_numpy(shard_set.image(row["key"]).copy()).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            small = method.predict(tensor).mask
        # Pillow's bilinear is another rule; numpy's own interpolation is the independent truth here
        expected = _bilinear(small[0, 0].numpy(), mask.shape)
        counts = confusion_matrix(mask.ravel(), expected.ravel() > 0.5, labels=[False, True])
        assert [row["tn"], row["fp"], row["fn"], row["tp"]] == counts.ravel().tolist()
        assert (row["height"], row["width"]) == mask.shape
        assert row["score"] == pytest.approx(expected.max(), abs=1e-6)
        if mask.any():
            assert row["label"] == 1
            assert row["pixel_auc"] == pytest.approx(roc_auc_score(mask.ravel(), expected.ravel()), abs=1e-4)
        else:
            assert row["pixel_auc"] is None
        assert row["tp"] + row["fp"] + row["fn"] + row["tn"] == mask.size
    assert sum(row["label"] for row in scored.rows) == 5


def _bilinear(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Half-pixel centres, edges repeated: what align_corners False means, written out."""
    result = values.astype(np.float64)
    for axis, wanted in enumerate(size):
        have = values.shape[axis]
        place = np.clip((np.arange(wanted) + 0.5) * have / wanted - 0.5, 0, have - 1)
        low = np.floor(place).astype(int)
        part = (place - low).reshape([-1 if a == axis else 1 for a in range(2)])
        high = np.minimum(low + 1, have - 1)
        result = result.take(low, axis) * (1 - part) + result.take(high, axis) * part
    return result


def test_every_key_once_and_the_same_rows_whatever_the_workers(shard_set: ShardSet, tmp_path: Path) -> None:
    for workers in (0, 1, 3, 20):
        scored = _run(shard_set, workers=workers, samples=2)
        folder = tmp_path / str(workers)
        folder.mkdir()
        evaluate.write(folder, "fake", scored, RUN, "stand_in")
        evaluate.write_samples(folder, scored.samples, RUN)
    for name in ("fake.parquet", "samples.parquet"):
        assert len({(tmp_path / str(workers) / name).read_bytes() for workers in (0, 1, 3, 20)}) == 1
    table = scores.read(tmp_path / "3" / "fake.parquet")
    assert table["key"].to_pylist() == shard_set.keys
    assert scores.metadata(table) == {
        **RUN.about,
        "run": RUN.name,
        "seed": 1,
        "testset": "fake",
        "data": "stand_in",
        "schema_version": scores.SCHEMA_VERSION,
    }
    row = table.to_pylist()[0]
    assert (row["run_sha256"], row["testset_sha256"], row["testset_version"]) == ("abc", shard_set.digest, "7")
    assert row["source"] == shard_set.row("k0")["source"]
    assert row["unit"] == shard_set.row("k0")["unit"]


def test_images_come_one_at_a_time_at_their_size(shard_set: ShardSet) -> None:
    method = Fake()
    _run(shard_set, method)
    assert method.shapes == [(row["height"], row["width"]) for row in shard_set.rows.values()]


def test_what_the_method_gives_beside_a_mask(shard_set: ShardSet) -> None:
    gives = {
        "score": torch.tensor([0.25]),
        "class_probs": torch.tensor([[0.2, 0.8]]),
        "signals": {"quant": torch.tensor([3.0])},
    }
    for row in _run(shard_set, Fake(**gives)).rows:
        assert row["score"] == 0.25
        assert row["class_probs"] == pytest.approx([0.2, 0.8])
        assert row["signals"] == {"quant": 3.0}
        assert row["tp"] is not None


def test_a_method_without_masks_has_no_pixel_numbers(shard_set: ShardSet, tmp_path: Path) -> None:
    scored = _run(shard_set, Fake(mask=None, score=torch.tensor([0.5])), samples=1)
    evaluate.write(tmp_path, "fake", scored, RUN, "stand_in")
    row = scores.read(tmp_path / "fake.parquet").to_pylist()[0]
    assert row["tp"] is None
    assert row["pixel_auc"] is None
    assert row["score"] == 0.5
    assert scored.samples[0].get("prediction") is None


def test_bfloat16_is_close(shard_set: ShardSet) -> None:
    full, low = _run(shard_set), _run(shard_set, dtype="bfloat16")
    assert [r["key"] for r in full.rows] == [r["key"] for r in low.rows]
    for ours, theirs in zip(full.rows, low.rows, strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=0.05)
    assert any(ours["score"] != theirs["score"] for ours, theirs in zip(full.rows, low.rows, strict=True))


def _png(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_samples_for_figures(shard_set: ShardSet, tmp_path: Path) -> None:
    scored = _run(shard_set, samples=3, redistribute=True)
    evaluate.write_samples(tmp_path, scored.samples, RUN)
    table = pq.read_table(tmp_path / "samples.parquet")
    assert json.loads(table.schema.metadata[b"unforge"])["data"] == "stand_in"
    samples = table.to_pylist()
    assert len(samples) == 3
    for sample in samples:
        row = next(row for row in scored.rows if row["key"] == sample["key"])
        assert sample["image"] == shard_set.image_bytes(sample["key"])
        assert np.array_equal(_png(sample["mask"]) > 0, shard_set.mask(sample["key"]))
        assert sample["f1"] == pytest.approx(2 * row["tp"] / (2 * row["tp"] + row["fp"] + row["fn"]))
        assert _png(sample["prediction"]).max() == round(row["score"] * 255)
        assert sample["redistribute"] is True
        assert sample["kind"] == "splice"
        # the deepest pixel of the mask lies in cell (0, 1) of 2 x 3; the anchor looks at itself only
        assert (sample["anchor_x"], sample["anchor_y"]) == (0.5, 0.25)
        assert _png(sample["attention"]).tolist() == [[0, 255, 0], [0, 0, 0]]
    assert {s["key"] for s in samples} == evaluate.choose(shard_set, 3)
    assert evaluate.choose(shard_set, 2) < evaluate.choose(shard_set, 3)
    assert len(evaluate.choose(shard_set, 99)) == 5
    assert _run(shard_set).samples == []


def test_the_anchor_is_deep_in_the_mask() -> None:
    mask = np.zeros((80, 80), bool)
    mask[:60, :2] = True  # long, but nowhere deep
    mask[40:60, 30:55] = True
    columns = evaluate.attention_of_anchor(torch.rand(1, 8, 8, 4, 4), mask)
    assert (columns["anchor_x"], columns["anchor_y"]) == (0.5625, 0.5625)
    with pytest.raises(ValueError, match="shape"):
        evaluate.attention_of_anchor(torch.rand(1, 8, 8), mask)


class _Fails(Fake):
    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        if tuple(image.shape[2:]) == (17, 19):
            raise IndexError("out of range")
        return super().predict(image, extras)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_image_is_named_with_its_set(shard_set: ShardSet, workers: int) -> None:
    key = next(key for key, row in shard_set.rows.items() if row["width"] == 19)
    with pytest.raises(evaluate.EvaluationError, match=f"fake: image {key}: IndexError: out of range"):
        _run(shard_set, _Fails(), workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_named_with_its_set(shard_set: ShardSet, tmp_path: Path, workers: int) -> None:
    (tmp_path / "manifest.parquet").write_bytes((shard_set.path / "manifest.parquet").read_bytes())
    (tmp_path / "shard-000000.tar").write_bytes(b"\0" * (shard_set.path / "shard-000000.tar").stat().st_size)
    with pytest.raises(evaluate.EvaluationError, match=r"fake: image k0: .*not what was written"):
        _run(ShardSet(tmp_path), workers=workers)


@pytest.mark.parametrize(
    "mask", [torch.full((1, 1, 4, 4), float("nan")), torch.zeros(1, 4, 4), torch.zeros(2, 1, 4, 4)]
)
def test_a_mask_that_is_none_is_refused(shard_set: ShardSet, mask: Tensor) -> None:
    with pytest.raises(evaluate.EvaluationError, match="image k0"):
        _run(shard_set, Fake(mask=mask))


def test_an_image_beyond_the_limit_is_refused_before_anything_is_scored(shard_set: ShardSet) -> None:
    method = Fake()
    with pytest.raises(ValueError, match="56x40 pixels, more than 2239"):
        _run(shard_set, method, max_pixels=2239)
    assert method.shapes == []


def test_read_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        evaluate.read_run(tmp_path, "a/b/full/s2")
    config = {"method": "m", "variant": "v", "scale": "small", "config": {"recipe": {"source": "text"}}}
    paths.write_json(tmp_path / "config.json", config)
    paths.write_json(tmp_path / "meta.json", paths.meta({"pretraining": "autoencoder"}, 2, {}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    run = evaluate.read_run(tmp_path, "a/b/full/s2")
    assert run.seed == 2
    assert run.about == {
        "method": "m",
        "variant": "v",
        "scale": "small",
        "pretraining": "autoencoder",
        "recipe": "text",
    }
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert evaluate.read_run(tmp_path, "a/b/full/s2").sha256 != run.sha256
