"""The pools of real images: the sets themselves, and the views that stand in for them."""

from __future__ import annotations

import importlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unforge import datasets, paths, profiles, shards
from unforge.datasets import add, coco, imagenet, ingest, laion, photos, views

POOLS = (imagenet, laion, coco)


def test_pools_show_what_no_tokenizer_learnt_from():
    learnt = set(views.STAND_IN.splits)
    assert {views.STAND_IN.splits[split] for split in learnt} == {"train", "val"}
    for module in POOLS:
        assert module.STAND_IN.splits["test"] == "test"
        assert not {"train", "pretrain"} & set(module.STAND_IN.splits)
    assert "test" not in learnt
    assert learnt | {"test"} == {name for name, _ in photos.SHARES}


@pytest.mark.parametrize("module", POOLS)
def test_a_photograph_has_the_same_split_in_every_subset(tree, module):
    names = [f"{number:012d}.jpg" for number in range(400)]
    root = tree()
    root.mkdir(parents=True)
    for name in names:
        (root / name).touch()
    found = list(module.find(root))
    shares = Counter(row.split for row in found)
    assert set(shares) == {"val", "test"}
    assert 90 <= shares["val"] <= 150
    assert {(row.kind, row.label, row.mask, row.status) for row in found} == {("authentic", 0, None, "ok")}
    assert len({row.source for row in found}) == 400
    splits = {row.image.name: row.split for row in found}
    for name in names[::2]:
        (root / name).unlink()
    assert {row.image.name: row.split for row in module.find(root)} == {name: splits[name] for name in names[1::2]}


def test_layouts_of_the_sets(tree):
    root = tree(
        "ILSVRC2012_val_00000001.JPEG",
        "n01440764/ILSVRC2012_val_00000293.JPEG",
        contents={"LOC_val_solution.csv": "ImageId,PredictionString\n"},
    )
    assert [(row.key, row.source) for row in imagenet.find(root)] == [
        ("ILSVRC2012_val_00000001", ("imagenet:ILSVRC2012_val_00000001",)),
        ("ILSVRC2012_val_00000293", ("imagenet:ILSVRC2012_val_00000293",)),
    ]
    root = tree("00000/000000000.jpg", "00001/000010000.png", contents={"00000/000000000.json": "{}"})
    listed = [row for row in laion.find(root) if row.source[0].startswith("laion:0000")]
    assert [row.source for row in listed] == [("laion:000000000",), ("laion:000010000",)]


def test_unusable_files_are_rejected_and_the_rest_is_taken(tree):
    root = tree("a.jpg", "b.png", contents={"c.JPEG": b"no image", "d.jpg": b""})
    rows: list[dict[str, object]] = []
    samples = list(ingest.read(laion, root, rows))
    assert sorted(sample.key for sample in samples) == ["a", "b"]
    assert Counter(str(row["status"]) for row in rows) == {"ok": 2, "rejected": 2}
    assert samples[0].image == (root / "a.jpg").read_bytes()


def test_views_are_listed_but_have_no_files_to_add(tree):
    entries = {entry["id"]: entry for entry in add.list_()}
    assert entries["views"]["status"] == entries["photos"]["status"] == "package"
    assert entries["catnet"]["status"] == "protocol"
    assert {entries[name]["status"] for name in ("imagenet", "laion", "coco")} <= {"stand_in", "real"}
    assert entries["views"]["counts"] is None
    with pytest.raises(ValueError, match="views has no files of its own"):
        add.check("views", tree("a.jpg"))


def test_ingestion_of_made_pools(project: Path, monkeypatch: pytest.MonkeyPatch):
    """The stage writes shards of squares; photographs keep to their splits, and a second run gives the same bytes."""
    stage = importlib.import_module("stages.ingest")
    scale = {"views": {"images": 40, "size": 32}, "laion": {"images": 16, "size": 96}}
    profile = profiles.load("smoke")
    monkeypatch.setitem(profile.values, "ingest", {**profile.values["ingest"], **scale})
    chosen = [sample for sample in photos.photographs() if not sample.key.startswith("interior")]
    monkeypatch.setattr(photos, "photographs", lambda: iter(chosen))
    stage.stage("photos", profile)
    split_of = {sample.source[0]: sample.split for sample in chosen}
    for name, size in (("views", 32), ("laion", 96)):
        stage.stage(name, profile)
        target = paths.shards("smoke", name)
        pool = shards.ShardSet(target)
        assert (pool.data, pool.redistribute) == ("stand_in", True)
        assert len(pool.rows) == scale[name]["images"]
        recipe = datasets.load(name).STAND_IN
        for key, row in pool.rows.items():
            assert (row["width"], row["height"], row["kind"], row["data"]) == (size, size, "authentic", "stand_in")
            assert recipe.splits[split_of[row["source"][0]]] == row["split"]
            assert pool.image(key).shape == (size, size, 3)
        first = (target / "shard-000000.tar").read_bytes()
        stage.stage(name, profile)
        assert (target / "shard-000000.tar").read_bytes() == first


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "module", "count"), [("imagenet_sample", imagenet, 400), ("coco_val100", coco, 100)]
)
def test_real_pools(real_data: Path, folder: str, module, count: int):
    rows: list[dict[str, object]] = []
    samples = list(ingest.read(module, real_data / folder, rows))
    assert len(rows) == count
    assert len(samples) + sum(row["status"] == "rejected" for row in rows) == count
    assert len(samples) >= count - 2
    shares = Counter(sample.split for sample in samples)
    assert 0.2 < shares["val"] / len(samples) < 0.42
    for sample in samples[::40]:
        assert np.asarray(Image.open(io.BytesIO(sample.image))).ndim in (2, 3)
        assert sample.source[0].startswith(f"{module.__name__.rsplit('.', 1)[-1]}:")
    report = add.check(module.__name__.rsplit(".", 1)[-1], real_data / folder)
    assert report.expected == module.CARD.images
    assert any("published" in problem for problem in report.problems)
