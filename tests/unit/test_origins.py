"""Stages of provenance: what is made from what, and what is left out when it was not supplied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit import toy
from tests.unit.test_tables_provenance import INVERSE, SPEC
from unforge import assets, catalogue, datasets, demand, origins, paths, profiles


@pytest.fixture
def told(root: Path) -> Path:
    (root / "papers/toy/table_9.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    (root / "papers/toy/paper.yaml").write_text(toy.PAPER.replace("sparsevit", "iar_provenance"))
    return root


def affordable(**changes: Any) -> profiles.Profile:
    profile = toy.profile(**changes)
    profile.values["signals"] = {"rar": {"costly": []}, "var": {"costly": ["latent_tracer"]}}
    return profile


def test_a_run_needs_its_weights_and_every_set_it_is_taken_on(told: Path) -> None:
    profile = affordable()
    found = demand.demand(profile)
    (stage,) = origins.run_stages(profile, INVERSE, found.runs[INVERSE])
    assert stage.name == "signals-rar-inverse"
    assert set(stage.deps) == {
        "models/small/codebooks/rar", "models/small/inverse/rar", "data/shards/small/generated_rar",
        "data/shards/small/imagenet",
    }  # fmt: skip
    assert stage.outs == ("reports/small/scores/toy/rar/inverse/s0",)
    assert "--on" not in stage.arguments
    (own,) = origins.run_stages(profile, "toy/var/own/s0", found.runs["toy/var/own/s0"])
    assert not [dep for dep in own.deps if "inverse" in dep]
    assert own.arguments[-2:] == ("--on", "latent_tracer=generated_var~jpeg60,imagenet~jpeg60")
    assert [stage.name for stage in origins.paper_stages(profile, "toy", found)] == ["inverse-rar"]


def test_generated_images_come_from_a_prior_or_from_the_user(told: Path) -> None:
    profile = affordable()
    made = {stage.name: stage for stage in origins.shared_stages(profile, demand.demand(profile))}
    assert sorted(made) == sorted(
        [
            "ingest-views",
            *(f"{kind}-{family}" for kind in ("codebook", "prior", "generate") for family in ("rar", "var")),
        ]
    )
    assert made["generate-rar"].deps == ("models/small/codebooks/rar", "models/small/priors/rar")
    profile = affordable(stand_ins=False)
    profile.values["codebook"] = {"rar": {"file": "weights/rar.bin"}, "var": {"file": "weights/var.pth"}}
    made = {stage.name: stage for stage in origins.shared_stages(profile, demand.demand(profile))}
    assert sorted(made) == ["codebook-rar", "codebook-var", "generate-rar", "generate-var"]
    assert made["generate-rar"].deps == ("models/small/codebooks/rar", "data/raw/generated_rar/SOURCE.json")
    assert made["codebook-rar"].deps == ("weights/rar.bin",)


def test_a_tokenizer_made_of_another_one_brings_that_one(told: Path) -> None:
    profile = affordable()
    found = demand.demand(profile)
    asked = demand.Demand(**{**vars(found), "origins": frozenset({"vqdiffusion"})})
    made = {stage.name: stage for stage in origins.shared_stages(profile, asked)}
    assert "codebook-taming" in made
    assert "prior-taming" not in made
    assert "models/small/codebooks/taming" in made["codebook-vqdiffusion"].deps


def test_nothing_is_made_that_nobody_asks_for() -> None:
    nothing = demand.Demand(
        runs={}, counts=frozenset(), perturbed={}, testsets=frozenset(), protocols=frozenset()
    )  # fmt: skip
    assert origins.shared_stages(toy.profile(), nothing) == []


def test_sets_made_with_generators_bring_their_stages_and_nothing_else() -> None:
    """Stand-ins of OpenSDID, though no run of provenance asks for their models; with the real sets none is needed."""
    profile = profiles.load("small")
    asked = demand.Demand(
        runs={}, counts=frozenset(), perturbed={}, testsets=frozenset({"columbia", "opensdid_sdxl"}),
        protocols=frozenset({"opensdid"}),
    )  # fmt: skip
    made = {stage.name: stage for stage in catalogue.shared_stages(profile, asked)}
    kinds = ("codebook", "prior", "generate")
    assert {name for name in made if name.partition("-")[0] in kinds} == {
        f"{kind}-{family}" for kind in kinds for family in ("llamagen", "rar")
    }
    assert "ingest-views" in made
    assert "generators" not in made
    ingest = made["ingest-opensdid_sdxl"]
    assert set(ingest.deps) == {
        "data/raw/opensdid_sdxl/SOURCE.json", "data/shards/small/photos", "models/small/codebooks/rar",
        "data/shards/small/generated_rar",
    }  # fmt: skip
    assert {"unforge.tokenizers.rar", "unforge.forgeries", "unforge.datasets.opensdid_sdxl"} == set(ingest.modules)
    assert "models/small/codebooks/llamagen" in made["ingest-opensdid_train"].deps
    assert not [dep for dep in made["ingest-columbia"].deps if "codebooks" in dep or "generated" in dep]
    families = {f"opensdid_{name}" for name in ("sd15", "sd21", "sdxl", "sd3", "flux")}
    assert origins.of_sets(profile, families) == {"llamagen", "taming", "rar", "var", "infinity"}
    assert origins.of_sets(profile, ["columbia", "authentic"]) == frozenset()


def test_real_sets_need_no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert origins.of_sets(profiles.load("paper"), ["opensdid_sdxl"]) == frozenset()
    monkeypatch.setattr(assets, "is_real", lambda name: name == "opensdid_sdxl")
    assert origins.of_sets(profiles.load("small"), ["opensdid_sdxl", "opensdid_flux"]) == {"infinity"}


def test_every_generator_has_its_scale_in_profiles_with_stand_ins() -> None:
    named = [name for name in datasets.names() if hasattr(datasets.load(name), "GENERATOR")]
    assert len(named) == 6
    for scale in ("small", "smoke"):
        profile = profiles.load(scale)
        for name in named:
            assert profile.scale("ingest", name)["images"] > 0
            model = datasets.load(name).GENERATOR
            wanted = {"train", "val"} if datasets.load(name).STAND_IN.split == "train" else {"test"}
            assert all(profile.scale("generate", model)[split] > 0 for split in wanted)


def test_what_is_made_of_what() -> None:
    from unforge import tokenizers

    made = {name: tokenizers.load_module(name).MADE_OF for name in tokenizers.names() if name in origins.MADE_OF}
    assert made == origins.MADE_OF
    assert not any(
        hasattr(tokenizers.load_module(n), "MADE_OF") for n in tokenizers.names() if n not in origins.MADE_OF
    )


def test_only_supplied_models_are_run_without_stand_ins(told: Path) -> None:
    profile = toy.profile(stand_ins=False)
    profile.values["signals"] = {"rar": {"costly": []}, "var": {"costly": []}}
    profile.values["codebook"] = {"rar": {"file": "w.pth"}, "var": {"file": None}}
    found = demand.demand(profile)
    assert origins.obtainable(found, profile, lambda name: True).origins == frozenset()
    for family in ("rar", "var"):
        raw = told / paths.raw(paths.generated(family))
        raw.mkdir(parents=True)
        paths.write_json(raw / "SOURCE.json", {"source": "real"})
    kept = origins.obtainable(found, profile, lambda name: False)
    assert (kept.origins, kept.pools) == ({"rar"}, frozenset())
    assert kept.runs[INVERSE].testsets == ("generated_rar", "generated_rar~jpeg60", "generated_rar~resampled3")
    assert set(kept.runs) == {INVERSE}
