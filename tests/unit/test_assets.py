"""Stages of what runs build on, for runs of the real repository's papers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unforge import assets, catalogue, dag, demand, profiles


@pytest.fixture(scope="module")
def wanted() -> demand.Demand:
    return demand.demand(profiles.load("small"), ["tampertok"])


def test_a_backbone_learns_from_its_own_photographs_and_from_what_it_is_built_on(wanted: demand.Demand) -> None:
    made = {stage.name: stage for stage in assets.stages(profiles.load("small"), wanted)}
    assert made["backbone-internvl"].deps == ("data/shards/small/pretraining", "models/small/backbones/forensic")
    assert made["backbone-forensic"].deps == ("data/shards/small/pretraining",)
    assert made["codebook-masks"].arguments == ("masks", "--sets", "casia2,miml,sidset,tampcoco")
    assert "data/protocols/small/tampertok/members.parquet" in made["explain-tampertok"].deps
    assert assets.sets(wanted, profiles.load("small")) == ["pretraining"]


def test_the_codebook_learns_from_objects_once_coco_was_added(
    wanted: demand.Demand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def codebook() -> dag.Stage:
        (stage,) = [each for each in assets.stages(profiles.load("small"), wanted) if each.name == "codebook-masks"]
        return stage

    without = codebook()
    assert not [dep for dep in without.deps if "raw" in dep]
    monkeypatch.setattr(assets, "is_real", lambda dataset: dataset == "coco")
    assert codebook().arguments == (*without.arguments, "--polygons", "data/raw/coco")
    assert codebook().deps == (*without.deps, "data/raw/coco/SOURCE.json")


def test_written_texts_are_named_in_the_profile(wanted: demand.Demand) -> None:
    profile = profiles.load("small")

    def explain(profile: profiles.Profile) -> dag.Stage:
        (stage,) = [each for each in assets.stages(profile, wanted) if each.name == "explain-tampertok"]
        return stage

    without = explain(profile)
    assert without.arguments == ("tampertok",)
    assert without.keys == ("model", "explain.tampertok")
    texts = {"explain": {"tampertok": {"texts": "data/texts"}}}
    given = explain(replace(profile, values={**profile.values, **texts}))
    assert given.arguments == ("tampertok", "--texts", "data/texts")
    assert given.deps == (*without.deps, "data/texts")
    with pytest.raises(ValueError, match=r"no explain\.tampertok"):
        explain(replace(profile, values={**profile.values, "explain": {}}))


@pytest.mark.parametrize("name", ["paper", "smoke"])
def test_every_profile_names_the_same_texts(name: str) -> None:
    values = profiles.load(name).values["explain"]
    assert {key: set(value) for key, value in values.items()} == {
        key: set(value) for key, value in profiles.load("small").values["explain"].items()
    }


def test_released_weights_take_the_place_of_pretraining(wanted: demand.Demand) -> None:
    profile = profiles.load("paper")
    run = wanted.runs["tampertok/tampertok/full/s0"]
    assert not assets.obtainable(run, profile)
    values = {**profile.values, "backbone": {**profile.values["backbone"], "internvl": {"directory": "weights/x"}}}
    profile = replace(profile, values=values)
    assert assets.obtainable(run, profile)
    only = replace(wanted, runs={"tampertok/tampertok/full/s0": run})
    made = {stage.name: stage for stage in assets.stages(profile, only)}
    assert made["backbone-internvl"].deps == ("weights/x",)
    assert "backbone-forensic" not in made
    assert assets.sets(only, profile) == []


def test_a_run_is_given_its_assets_and_depends_on_them(wanted: demand.Demand) -> None:
    name = "tampertok/tampertok/mvss/s0"
    train, evaluate = catalogue.run_stages(profiles.load("small"), name, wanted.runs[name])
    expert = "models/small/runs/tampertok/tampertok/mvssnet-stem/s0"
    assert f"expert={expert}" in train.arguments
    assert expert in train.deps
    assert "unforge.methods.mvssnet" in train.modules
    assert "unforge.methods.mvssnet" in evaluate.modules
    assert expert not in evaluate.deps


def test_a_run_that_decodes_anothers_weights_learns_nothing(wanted: demand.Demand) -> None:
    name = "tampertok/tampertok/hard/s1"
    train, _ = catalogue.run_stages(profiles.load("small"), name, wanted.runs[name])
    assert train.arguments[-2:] == ("--asset", "run=models/small/runs/tampertok/tampertok/full/s1")
    assert train.deps == ("models/small/runs/tampertok/tampertok/full/s1",)


def test_the_header_baseline_is_one_stage(wanted: demand.Demand) -> None:
    name = "tampertok/sid/headers-full/s0"
    (stage,) = catalogue.run_stages(profiles.load("small"), name, wanted.runs[name])
    assert stage.script == "headers"
    assert stage.outs == ("reports/small/scores/tampertok/sid/headers-full/s0",)


def test_an_anchor_is_a_backbone() -> None:
    profile = profiles.load("small")
    wanted = demand.demand(profile, ["aap"])
    control = wanted.runs["aap/sid/control/s0"]
    places = assets.paths_of(control, "small")
    assert places == {"anchor": "models/small/backbones/consistency", "backbone": "models/small/backbones/lisa"}
    assert "backbone-consistency" in {stage.name for stage in assets.stages(profile, wanted)}
    alone = replace(wanted, runs={"x": replace(control, assets={"anchor": "consistency"})})
    assert assets.sets(alone, profile) == ["pretraining"]
    assert not assets.obtainable(control, profiles.load("paper")), "nobody has released weights of it"
