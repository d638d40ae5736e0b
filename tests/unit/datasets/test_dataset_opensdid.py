"""OpenSDID as parquet files and as a tree, whole and hostile; the set of authentic photographs."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.datasets.dataset_trees import SIZE, encoded, picture, square
from unforge import datasets, headers, priors, shards, tokenizers
from unforge.datasets import add, authentic, ingest, layout, near_duplicates, opensdid, opensdid_train, sidset

TESTS = {"sd15": "sd15", "sd21": "sd2", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux"}
"""By id of the test set: what the published split is called."""


def module(name: str) -> Any:
    return importlib.import_module(f"unforge.datasets.opensdid_{name}")


def row(key: str | None, label: int | None, mask: bool = False, **given: Any) -> dict[str, Any]:
    own = {"bytes": encoded(square(), "PNG"), "path": None} if mask else None
    image = {"bytes": encoded(picture(str(key)), "JPEG"), "path": None}
    return {"key": key, "image": image, "mask": own, "label": label, **given}


def write(path: Path, rows: list[dict[str, Any]], plain: bool = False, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("key", pa.string()), ("image", file), ("mask", file), ("label", pa.int64())])
    if plain:
        packed = ("image", "mask")
        rows = [{**each, **{name: (each[name] or {}).get("bytes") for name in packed}} for each in rows]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=3, **options)
    return path


def four(generator: str, first: int = 651821) -> list[dict[str, Any]]:
    """A row of each kind."""
    return [
        row(f"partial/{generator}/fake/{first:09d}.jpg", 1, mask=True),
        row(f"partial/{generator}/real/{first + 1:09d}.jpg", 0),
        row(f"entire/{generator}/fake/{first + 2:09d}.jpg", 1),
        row(f"entire/{generator}/real/{first + 3:09d}.jpg", 0),
    ]


def read(found: Any, root: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    log: list[dict[str, Any]] = []
    return {sample.key: sample for sample in ingest.read(found, root, log)}, log


@pytest.mark.parametrize("plain", [False, True])
def test_a_parquet_file_gives_three_classes_and_the_original_bytes(tmp_path: Path, plain: bool) -> None:
    rows = four("sd15")
    write(tmp_path / "data/sd15-00000-of-00070.parquet", rows, plain)
    samples, log = read(opensdid_train, tmp_path)
    assert {key: (s.kind, s.label, s.meta["part"], s.source) for key, s in samples.items()} == {
        "partial_fake_000651821": ("regenerated", 1, "tampered", ("megalith:000651821",)),
        "partial_real_000651822": ("authentic", 0, "real", ("megalith:000651822",)),
        "entire_fake_000651823": ("generated", 1, "full_synthetic", ("megalith:000651823",)),
        "entire_real_000651824": ("authentic", 0, "real", ("megalith:000651824",)),
    }
    assert [s.image for s in samples.values()] == [each["image"]["bytes"] for each in rows]
    assert (shards.decode_mask(samples["partial_fake_000651821"].mask) == (square() > 0)).all()
    whole = shards.decode_mask(samples["entire_fake_000651823"].mask)
    assert whole.all()
    assert whole.shape == SIZE[::-1]
    assert samples["partial_real_000651822"].mask is None
    assert [each["key"] for each in log if each["status"] != "ok"] == ["entire_fake_000651823"]


def test_a_tree_gives_the_same_as_a_parquet_file(tree: Any, tmp_path: Path) -> None:
    keys = [str(each["key"]) for each in four("sd15")]
    root = tree(
        *(f"OpenSDI_train/{key}" for key in keys),
        "OpenSDI_train/partial/sd15/masks/000651821.png",
        "OpenSDI_train/partial/sd15/fake/000000007.jpg",
        "OpenSDI_train/partial/flux/fake/000000008.jpg",
    )
    write(tmp_path / "other/train-sd15.parquet", four("sd15"))
    one, log = read(opensdid_train, root)
    other, _ = read(opensdid_train, tmp_path / "other")
    assert {k: (s.kind, s.source, s.mask) for k, s in one.items()} == {
        k: (s.kind, s.source, s.mask) for k, s in other.items()
    }
    rejected = [each["reason"] for each in log if each["status"] == "rejected"]
    assert rejected == [layout.NO_MASK]
    assert [found.key for found in module("flux").find(root / "OpenSDI_train")] == ["partial_fake_000000008"]


def test_full_is_read_as_entire(tree: Any) -> None:
    (found,) = opensdid_train.find(tree("full/sd15/fake/000000009.jpg"))
    assert (found.kind, found.status) == ("generated", "ok")


def test_each_test_set_takes_its_own_generator_and_no_training_images(tmp_path: Path) -> None:
    for at, name in enumerate(TESTS.values()):
        write(tmp_path / f"OpenSDI_test/data/{name}-00000-of-00010.parquet", four(name, 1000 * at))
    write(tmp_path / "OpenSDI_train/data/train/sd15-00000-of-00070.parquet", four("sd15", 9000))
    for at, (name, published) in enumerate(TESTS.items()):
        found = list(module(name).find(tmp_path / "OpenSDI_test"))
        assert [each.meta["generator"] for each in found] == [published] * 4
        assert {each.split for each in found} == {"test"}
        assert found[0].source == (f"megalith:{1000 * at:09d}",)
    both = tmp_path
    (both / "OpenSDI_test").rename(both / "test")
    assert {each.source for each in module("sd15").find(both)} == {(f"megalith:{i:09d}",) for i in range(4)}
    trained = list(opensdid_train.find(both))
    assert {each.source for each in trained} == {(f"megalith:{i:09d}",) for i in range(9000, 9004)}
    assert {each.split for each in trained} == {"train"}


def test_validation_images_share_no_photograph_with_training_images(tmp_path: Path) -> None:
    rows = [each for i in range(40) for each in four("sd15", 100 + 2 * i)]
    write(tmp_path / "sd15-0.parquet", rows)
    split: dict[str, set[str]] = {}
    for found in opensdid_train.find(tmp_path):
        split.setdefault(found.source[0], set()).add(found.split)
    assert all(len(each) == 1 for each in split.values())
    assert Counter(next(iter(each)) for each in split.values())["val"] >= 1


def test_rows_that_contradict_themselves_are_rejected_with_a_reason(tmp_path: Path) -> None:
    rows = [
        row("partial/sd15/fake/000000001.jpg", 1, mask=True),
        row("00012.png", 1, mask=True),
        row("sd15/fake/000000002.jpg", 1, mask=True),
        row("partial/sd15/fake/000000003.jpg", 0, mask=True),
        row("partial/sd15/real/000000004.jpg", 2),
        row("entire/sd15/real/000000005.jpg", None),
        row("partial/sd15/fake/000000006.jpg", 1),
        row("../../etc/real/passwd.jpg", 0),
        row(None, 0),
        row("entire/sd15/fake/000000007.jpg", 1, image={"bytes": b"no image", "path": None}),
        row("entire/sd15/real/000000008.jpg", 0, image=None),
    ]
    write(tmp_path / "sd15-00000-of-00001.parquet", rows)
    samples, log = read(opensdid_train, tmp_path)
    assert set(samples) == {"partial_fake_000000001", "real_passwd"}
    reasons = [each["reason"] for each in log if each["status"] == "rejected"]
    assert len(reasons) == 9
    for part, count in {
        "neither real nor fake": 2, "neither entire nor partial": 1, "contradicts its key": 1, "label 2": 1,
        "label None": 1, layout.NO_MASK: 1, "not a readable image": 1, "no image": 1,
    }.items():  # fmt: skip
        assert sum(part in reason for reason in reasons) == count, part
    assert all(".." not in each["source_image"] for each in log)


def test_hostile_files_are_rejected_and_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidset, "RATIO_FLOOR", 2**16)
    whole = write(tmp_path / "sd15-0.parquet", four("sd15")).read_bytes()
    (tmp_path / "sd15-1.parquet").write_bytes(b"PAR1 not parquet PAR1")
    (tmp_path / "sd15-2.parquet").write_bytes(whole[:-40])
    pq.write_table(pa.table({"key": ["x"], "picture": [b"y"]}), tmp_path / "sd15-3.parquet")
    zeros = [row("entire/sd15/real/000000001.jpg", 0, image={"bytes": bytes(2**20), "path": None})]
    write(tmp_path / "sd15-4.parquet", zeros, compression="zstd")
    samples, log = read(opensdid_train, tmp_path)
    assert len(samples) == 4
    reasons = {each["source_image"]: each["reason"] for each in log if each["status"] == "rejected"}
    assert set(reasons) == {f"sd15-{i}.parquet" for i in (1, 2, 3, 4)}
    assert "lacks the columns image, mask, label" in reasons["sd15-3.parquet"]
    assert "bomb" in reasons["sd15-4.parquet"]


def test_it_is_checked_and_added_as_it_is(tmp_path: Path) -> None:
    file = write(tmp_path / "there/flux-00000-of-00010.parquet", four("flux"))
    report = add.check("opensdid_flux", tmp_path / "there")
    assert (report.total("ok"), report.total("flagged"), report.total("rejected")) == (3, 1, 0)
    assert report.problems == ("authentic: 2 images found, 10000 published",)
    (tmp_path / "project").mkdir()
    add.add("opensdid_flux", tmp_path / "there", tmp_path / "project")
    raw = tmp_path / "project/data/raw/opensdid_flux"
    assert (raw / "files/flux-00000-of-00010.parquet").read_bytes() == file.read_bytes()
    assert len(list(ingest.samples(raw, []))) == 4
    with pytest.raises(ValueError, match="no image of opensdid_sd3 found"):
        add.check("opensdid_sd3", tmp_path / "there")
    with pytest.raises(ValueError, match="opensdid_train"):
        add.check("opensdid", tmp_path / "there")


def test_the_protocol_leaves_out_photographs_of_test_images(tmp_path: Path) -> None:
    write(tmp_path / "train/sd15-0.parquet", four("sd15", 1) + four("sd15", 11))
    write(tmp_path / "test/flux-0.parquet", four("flux", 3))
    sets = {}
    for name, found in {"opensdid_train": opensdid_train, "opensdid_flux": module("flux")}.items():
        part = tmp_path / ("train" if found is opensdid_train else "test")
        shards.write(tmp_path / name, ingest.read(found, part, []), name=name, data="real", version="1")
        sets[name] = shards.ShardSet(tmp_path / name)
    own = {name: sets[name] for name in opensdid.MEMBERS}
    table, leaks = near_duplicates.members(opensdid, own, {"opensdid_flux": sets["opensdid_flux"]})
    kept = set(table["key"].to_pylist())
    assert len(kept) < 8
    assert not any("000000003" in key or "000000004" in key for key in kept)
    assert leaks.num_rows >= 2


def test_five_generators_that_differ_and_one_that_is_learnt_from() -> None:
    makers = [module(name).GENERATOR for name in TESTS]
    assert len(set(makers)) == 5
    assert set(makers) <= set(priors.OF) & set(tokenizers.names())
    assert opensdid_train.GENERATOR == module("sd15").GENERATOR
    assert set(opensdid.MEMBERS) == {"opensdid_train"}
    for name in TESTS:
        recipe, learnt = module(name).STAND_IN, opensdid_train.STAND_IN
        assert (recipe.kinds, recipe.split, learnt.split) == (learnt.kinds, "test", "train")
        assert (recipe.extension, recipe.quality) == (learnt.extension, learnt.quality)
    assert {row["id"] for row in add.list_() if row["status"] == "protocol"} >= {"opensdid"}
    assert {f"opensdid_{name}" for name in TESTS} <= set(datasets.names())


def test_headers_tell_a_set_whose_classes_were_saved_differently(tmp_path: Path) -> None:
    rows = [each for i in range(12) for each in four("sd15", 100 * i)]
    for each in rows:
        if each["label"]:
            each["image"]["bytes"] = encoded(picture(str(each["key"])), "JPEG", quality=40)
    write(tmp_path / "sd15-0.parquet", rows)
    shards.write(tmp_path / "set", ingest.read(opensdid_train, tmp_path, []), name="s", data="real", version="1")
    one = shards.ShardSet(tmp_path / "set")
    features = [headers.features(one, key) for key in one.keys]
    classes = [headers.class_of(one.row(key)) for key in one.keys]
    assert Counter(classes) == {0: 24, 1: 12, 2: 12}
    score = 1 - headers.fit(features, classes).predict(features)[:, 0]
    assert min(score[[c > 0 for c in classes]]) > max(score[[c == 0 for c in classes]])


def test_authentic_photographs_are_any_images(tree: Any) -> None:
    samples, _ = read(authentic, tree("a/x.jpg", "b/x.jpg", contents={"b/notes.txt": "no image"}))
    assert [(s.label, s.kind, s.split, s.mask) for s in samples.values()] == [(0, "authentic", "test", None)] * 2
    assert {s.source for s in samples.values()} == {("authentic:a/x",), ("authentic:b/x",)}
    assert (authentic.STAND_IN.kinds, authentic.STAND_IN.split) == ({"authentic": 1.0}, "test")
