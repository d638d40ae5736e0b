"""Stages of what runs build on, for runs of the real repository's papers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unforge import assets, catalogue, demand, profiles


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
