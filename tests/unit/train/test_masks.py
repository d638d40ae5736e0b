"""The mask tokenizer as an artefact: what it is trained on, what is written, what is measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from unforge import masks, paths, seeds, shards
from unforge.forgeries.steps import regions
from unforge.profiles import Machine
from unforge.train import distributed
from unforge.train import masks as stage
from unforge.types import Sample

MACHINE = Machine(device="cpu", dtype="float32", threads=1, workers=0)
TINY = dataclasses.replace(masks.SMALL, size=16, latents=4, codes=16, code_dim=4, widths=(8, 16), groups=4, k=3)
VALUES = {"steps": 90, "tuning_steps": 10, "batch": 8, "validate_every": 30, "checkpoint_every": 40}
SHORT = {"steps": 12, "tuning_steps": 10, "batch": 4, "validate_every": 6, "checkpoint_every": 4}


def sample(i: int, split: str, label: int = 1) -> Sample:
    inside = regions.blob(32, 0.2, seeds.generator(0, str(i), "region"))
    image = np.full((32, 24, 3), i, np.uint8)
    return Sample(
        key=f"forged-{i:02}", image=shards.encode_png(image), extension="png", label=label,
        mask=shards.encode_png(inside[:, :24]) if label else None, kind="splice" if label else "authentic",
        source=(f"p{i}",), unit=f"forged-{i:02}", split=split,
    )  # fmt: skip


@pytest.fixture
def forged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> shards.ShardSet:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(masks, "SMALL", TINY)
    splits = ["train", "train", "val", "pretrain", "test"]
    rows = [sample(i, splits[i % 5], label=int(i != 0)) for i in range(30)]
    shards.write(tmp_path / "forged", rows, name="forged", data="stand_in", version="1")
    return shards.ShardSet(tmp_path / "forged")


def learnt(forged: shards.ShardSet, folder: str = "masks", values: dict[str, int] = VALUES, **more: Any) -> Path:
    target = paths.codebook("tiny", folder)
    with distributed.world(MACHINE) as world:
        try:
            stage.learn("masks", values, [forged], target, machine=MACHINE, seed=0, world=world, **more)
        finally:
            torch.use_deterministic_algorithms(False)
    return target


def test_it_is_written_with_what_it_does_on_masks_it_has_not_seen(forged: shards.ShardSet) -> None:
    target = learnt(forged)
    meta = paths.read_json(target / "meta.json")
    assert meta["config"]["masks"] == {"pretrain": 6, "train": 11, "val": 6}  # one of `train` is authentic
    assert meta["inputs"] == {str(forged.path): forged.digest}
    tokenizer = masks.load(target)
    assert tokenizer.config == TINY.for_steps(90)
    values = []
    for key in [key for key, row in forged.rows.items() if row["split"] == "val"]:
        padded = np.zeros((32, 32))
        padded[:, :24] = forged.mask(key)
        own = padded.reshape(16, 2, 16, 2).mean((1, 3))
        tokens = tokenizer.encode(torch.from_numpy(forged.mask(key))[None, None].float())
        with torch.no_grad():
            found = tokenizer.decode(tokens)[0, 0].numpy() > 0.5
        whole = np.round(own * 255) / 255 > 0.5
        values.append((found & whole).sum() / (found | whole).sum())
    said = meta["config"]["measured"]
    assert said["iou"] == pytest.approx(np.mean(values), abs=1e-6)
    assert said["iou"] == said["iou_of_prefix"]["4"]
    assert said["iou"] > 0.25  # a blank mask has 0, one of ones about 0.2
    assert 1 < said["perplexity"] <= said["codes_used"] <= 16

    steps = {row["name"]: row["step"] for row in pq.read_table(target / "log.parquet").to_pylist()}
    assert steps["pretraining/validation/iou"] == 90
    assert steps["tuning/ksd"] == steps["tuning/prefix"] == 10
    usage = pq.read_table(target / "usage.parquet").to_pydict()
    assert usage["code"] == list(range(16))
    assert sum(usage["count"]) == 11 * 4
    pairs = pq.read_table(target / "similar.parquet").to_pylist()
    assert len(pairs) == 4 * 6
    assert {pair["kind"] for pair in pairs} == {"moved", "other", "replaced"}
    assert all(0 <= pair["iou"] <= 1 and pair["differing"] in (0, 0.25, 0.5, 0.75, 1) for pair in pairs)
    assert not list((Path(".unforge") / "resume").glob("*"))


RECTANGLE = [[0, 0, 23, 0, 23, 15, 0, 15]]  # 24 x 16 pixels, corners included


def coco_files(root: Path, segmentations: list[Any], width: int = 48, height: int = 32) -> Path:
    """COCO as `unforge data add` lays it out: one photograph, whose bytes nobody reads, and its objects."""
    (root / "files/annotations").mkdir(parents=True)
    (root / "files/val2017").mkdir()
    (root / "files/val2017/000000000007.jpg").write_bytes(b"not an image")
    document = {
        "images": [{"id": 7, "file_name": "000000000007.jpg", "width": width, "height": height}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": number, "image_id": 7, "category_id": 1, "segmentation": segmentation, "iscrowd": 0}
            for number, segmentation in enumerate(segmentations)
        ],
    }
    paths.write_json(root / "files/annotations/instances_val2017.json", document)
    paths.write_json(root / "SOURCE.json", {"source": "real"})
    return root


def test_objects_are_reduced_to_the_tokenizers_size(tmp_path: Path) -> None:
    (only,) = stage.objects(coco_files(tmp_path, [RECTANGLE]) / "files", 16, 0)
    truth = np.zeros((16, 16), np.uint8)
    truth[:5, :8] = 255
    truth[5, :8] = 85  # one of three rows
    assert (only == truth).all()


def test_small_empty_and_broken_objects_are_left_out(tmp_path: Path) -> None:
    bad: list[Any] = [
        [[0, 0, 3, 0, 3, 3, 0, 3]],  # 16 of 2304 pixels
        [[1, 1]], [], [[60, 0, 90, 0, 90, 30]], [["a", "b", "c", "d", "e", "f"]], [None],
        {"counts": [0, 1536], "size": [32, 48]},
    ]  # fmt: skip
    assert len(stage.objects(coco_files(tmp_path / "some", [*bad, RECTANGLE]) / "files", 16, 0)) == 1
    assert stage.objects(coco_files(tmp_path / "none", bad) / "files", 16, 0).shape == (0, 16, 16)
    assert len(stage.objects(coco_files(tmp_path / "huge", [RECTANGLE], 10**6, 10**6) / "files", 16, 0)) == 0


def test_a_bounded_number_of_objects_is_chosen_by_hash(tmp_path: Path) -> None:
    columns = [[[x, 0, x + 9, 0, x + 9, 31, x, 31]] for x in range(38)]
    root = coco_files(tmp_path, columns) / "files"
    every = stage.objects(root, 48, 0)
    starts = [int(mask[0].argmax()) for mask in every]
    assert sorted(starts) == list(range(38))
    assert starts != sorted(starts)
    assert (stage.objects(root, 48, 0, most=5) == every[:5]).all()
    assert [int(mask[0].argmax()) for mask in stage.objects(root, 48, 1, most=5)] != starts[:5]


def test_photographs_without_annotations_are_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco_files(tmp_path, [RECTANGLE]) / "files"
    (root / "annotations/instances_val2017.json").unlink()
    assert stage.objects(root, 16, 0).shape == (0, 16, 16)
    assert "no instances_" in capsys.readouterr().out


def test_objects_of_coco_are_learnt_from_where_it_was_added(forged: shards.ShardSet, tmp_path: Path) -> None:
    added = coco_files(tmp_path / "coco", [RECTANGLE, [[4, 4, 40, 4, 40, 28]]])
    plain = learnt(forged, "plain", SHORT)
    assert "objects" not in paths.read_json(plain / "meta.json")["config"]["masks"]
    more = learnt(forged, "more", SHORT, polygons=added)
    meta = paths.read_json(more / "meta.json")
    assert meta["config"]["masks"] == {"pretrain": 6, "train": 11, "val": 6, "objects": 2}
    assert meta["inputs"][str(added)] == paths.sha256(added / "SOURCE.json")
    assert (plain / "model.safetensors").read_bytes() != (more / "model.safetensors").read_bytes()


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    forged: shards.ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learnt(forged, "whole", SHORT)
    calls, splatting_loss = iter(range(100)), stage.splatting.query_loss

    def killed(*arguments: Any) -> torch.Tensor:
        if next(calls) == 6:
            raise KeyboardInterrupt
        return splatting_loss(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(stage.splatting, "query_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            learnt(forged, "killed", SHORT)
    assert not paths.codebook("tiny", "killed").exists()
    seen: list[int] = []
    fit = stage.fit
    monkeypatch.setattr(stage, "fit", lambda *a, **k: seen.append((found := fit(*a, **k)).resumed) or found)
    again = learnt(forged, "killed", SHORT)
    assert seen == [8, 4]  # the last states that were kept
    for file in ("model.safetensors", "config.json", "meta.json", "usage.parquet", "similar.parquet", "log.parquet"):
        assert (whole / file).read_bytes() == (again / file).read_bytes(), file
    assert not list((Path(".unforge") / "resume").glob("*"))


def test_without_masks_it_says_so(tmp_path: Path, forged: shards.ShardSet) -> None:
    shards.write(tmp_path / "other", [sample(0, "train", 0)], name="other", data="stand_in", version="1")
    with distributed.world(MACHINE) as world, pytest.raises(ValueError, match="0 masks to train on and 0 to validate"):
        stage.learn(
            "masks", VALUES, [shards.ShardSet(tmp_path / "other")], tmp_path / "x", machine=MACHINE, seed=0, world=world
        )
    torch.use_deterministic_algorithms(False)


def test_a_sample_depends_on_seed_step_and_index_only() -> None:
    pool = stage.shapes(6, 16, 0)
    data = stage.Masks(pool, 3)
    whole = data.load(5, 0, 8).mask
    assert np.array_equal(data.load(5, 4, 4).mask, whole[4:])
    assert not np.array_equal(data.load(6, 0, 8).mask, whole)
    assert not np.array_equal(stage.Masks(pool, 4).load(5, 0, 8).mask, whole)
    assert np.array_equal(stage.shapes(3, 16, 0), pool[:3])


def test_some_masks_are_empty_and_some_are_whole() -> None:
    middle = np.zeros((1, 16, 16), np.uint8)
    middle[:, 6:10, 6:10] = 255
    seen = stage.Masks(middle, 0).load(0, 0, 1500).mask.mean((1, 2))
    empty, whole = int((seen == 0).sum()), int((seen == 255).sum())
    assert 25 < empty < 70  # 45 expected
    assert 25 < whole < 70
    others = seen[(seen > 0) & (seen < 255)] / 255 * 256
    assert others.min() >= 16 * 0.6  # scaled by 0.8 to 1.25: areas of 10 to 25 pixels
    assert others.max() <= 16 * 1.7


def test_what_moves_in_from_outside_is_empty() -> None:
    ones = np.full((16, 16), 255, np.uint8)
    areas = [stage.moved(ones, seeds.generator(0, str(i), "move")).mean() / 255 for i in range(40)]
    assert min(areas) < 0.75
    assert max(areas) <= 1


def test_a_mask_is_reduced_as_the_tokenizer_does_it() -> None:
    mask = np.zeros((12, 32), bool)
    mask[:3, 5:9] = True
    square = masks.build(TINY).squared(torch.from_numpy(mask)[None, None].float())
    np.testing.assert_allclose(stage.reduced(mask, 16) / 255, square[0, 0].numpy(), atol=1 / 255)


def test_overlap_by_hand() -> None:
    first = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [0.6, 0.4, 0, 0]]).view(3, 1, 2, 2)
    second = torch.tensor([[0.0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]]).view(3, 1, 2, 2)
    assert stage.overlap(first, second).tolist() == pytest.approx([1 / 3, 1.0, 0.5])


@pytest.mark.parametrize("neighbourhood", ["topk", "centroid"])
@pytest.mark.parametrize("form", ["paper", "released"])
def test_the_splatting_loss_reaches_the_encoder_and_not_the_codes(form: str, neighbourhood: str) -> None:
    torch.manual_seed(0)
    silent = {"dice": 0.0, "prefix_weight": 0.0, "commitment": 0.0}
    config = dataclasses.replace(TINY, hml=form, neighbourhood=neighbourhood, temperature=0.2, **silent)
    gradients = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = stage.Tuning(masks.build(dataclasses.replace(config, ksd=weight))).train()
        losses = model.loss(stage.shown(stage.shapes(8, 16, 0)))
        assert set(losses.terms) == {"whole", "prefix", "ksd", "codebook", "commitment"}
        losses.total.backward()
        gradients[weight] = {name: p.grad for name, p in model.tokenizer.named_parameters()}
    same = [name for name in gradients[0.0] if torch.equal(gradients[0.0][name], gradients[1.0][name])]
    assert all(name in same for name in gradients[0.0] if not name.startswith("encoder"))
    assert not any(name in same for name in gradients[0.0] if name.startswith("encoder"))
