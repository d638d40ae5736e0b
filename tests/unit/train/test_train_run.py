from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit.train import fakes
from unforge import datasets, paths
from unforge.profiles import Machine
from unforge.train import distributed, protocols
from unforge.train.run import Name, Scale

VALUES: dict[str, Any] = {"steps": 7, "batch": 3, "crop": 96, "checkpoint_every": 2}


def test_names_of_runs() -> None:
    assert Name.parse("sparsevit/catnet/stem_lff/s12") == Name(
        method="sparsevit", variant="stem_lff", protocol="catnet", seed=12
    )
    assert Name.parse("sparsevit/catnet/full/s0").variant == ""
    assert Name.parse("constant/all") == Name(method="constant", variant="all", protocol="", seed=0)


@pytest.mark.parametrize("name", ["sparsevit", "a/b/c", "a/b/c/0", "a/b/c/s", "a/../c/s0", "a/b/c/s0/"])
def test_what_is_no_run_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a run"):
        Name.parse(name)


def test_scale_is_the_profiles() -> None:
    scale = Scale.of(VALUES, fakes.RECIPE, None)
    assert (scale.steps, scale.batch, scale.size, scale.crop) == (7, 3, 96, True)
    assert scale.operations(replace(fakes.RECIPE, augment=("blur",))) == ("crop", "blur", "crop")
    assert scale.operations(fakes.RECIPE) == ("crop", "dihedral", "crop")


def test_scale_is_the_recipes_where_the_profile_says_null() -> None:
    recipe = replace(fakes.RECIPE, batch=16, epochs=200, samples_per_epoch=12880, augment=("jpeg",))
    scale = Scale.of({**VALUES, "steps": None, "batch": None, "crop": None}, recipe, 512)
    assert (scale.steps, scale.batch, scale.size, scale.crop) == (161_000, 16, 512, False)
    assert scale.operations(recipe) == ("jpeg", "resize")
    halved = Scale.of({**VALUES, "steps": None, "batch": 4}, replace(recipe, accumulate=2), None)
    assert halved.steps == 200 * 1610


def test_scale_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="give `crop`"):
        Scale.of({**VALUES, "crop": None}, fakes.RECIPE, None)
    with pytest.raises(ValueError, match="stepz"):
        Scale.of({**VALUES, "stepz": 1}, fakes.RECIPE, None)


@pytest.fixture
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A protocol of two sets, the second of them with three parts."""
    monkeypatch.chdir(tmp_path)
    weights = {"one": 10, "two/x": 20, "two/y": 30, "two/z": 40}
    monkeypatch.setattr(datasets, "load", lambda name: SimpleNamespace(MEMBERS=weights))
    monkeypatch.setattr(protocols, "ShardSet", lambda path: SETS[path.name])
    target = paths.protocol("p", "mine") / "members.parquet"
    target.parent.mkdir(parents=True)
    return target


SETS = {"one": fakes.FakeSet("one", 4), "two": fakes.FakeSet("two", 5), "unused": fakes.FakeSet("unused", 3)}


def _write(target: Path, *parts: str) -> None:
    """The members table, with image i of `two` given to the member `two/<parts[i]>`."""
    member = {"one": ["one"] * 4, "two": [f"two/{part}" for part in parts]}
    rows = [
        {"dataset": s, "member": m, "key": k, "split": "val" if k.endswith("0") else "train"}
        for s, members in member.items()
        for k, m in zip(SETS[s].keys, members, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows[::-1]), target)


def _read(split: str = "train") -> list[tuple[str, tuple[str, ...], float]]:
    return [(m.shards.name, tuple(m.keys), m.weight) for m in protocols.members("p", "mine", split)]


def test_members_by_part(protocol: Path) -> None:
    _write(protocol, "x", "x", "y", "z", "y")
    one = ("one", ("one1", "one2", "one3"), 10)
    assert _read() == [one, ("two", ("two1",), 20), ("two", ("two2", "two4"), 30), ("two", ("two3",), 40)]
    assert _read("val") == [("one", ("one0",), 10), ("two", ("two0",), 90)]


def test_a_part_without_images_gives_its_weight_to_the_others(protocol: Path) -> None:
    _write(protocol, "x", "x", "y", "y", "y")
    assert [(keys, round(weight, 9)) for _, keys, weight in _read()[1:]] == [
        (("two1",), 36.0),
        (("two2", "two3", "two4"), 54.0),
    ]


def test_what_is_missing_is_named(protocol: Path) -> None:
    _write(protocol, "x", "x", "y", "z", "y")
    with pytest.raises(ValueError, match="no image of one with split 'test'"):
        _read("test")
    protocol.unlink()
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        _read()


def test_inputs_and_description() -> None:
    members = [fakes.member(SETS["one"], 2.0)]
    assert protocols.inputs(members, members) == {"shards/one": "digest of one"}
    assert protocols.describe(members) == [
        {"set": "one", "images": 4, "weight": 2.0, "keys": paths.digest(["one0", "one1", "one2", "one3"])}
    ]


def test_the_machine_of_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU"):
        distributed.prepare(Machine(device="cuda", dtype="float32", threads=1, workers=0))
    assert distributed.prepare(Machine(device="cpu", dtype="float32", threads=1, workers=0)) == torch.device("cpu")
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
