"""Stages of what runs build on: pretrained backbones, the codebook of masks, texts to learn from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unforge import dag, datasets, paths, profiles
from unforge import demand as demands
from unforge.dag import Stage

HEADERS = "headers"
"""The baseline that looks at no pixel: it is fitted and scored in one stage."""
POLYGONS = "coco"
"""The set whose objects the codebook of masks learns from too, once it was added."""
BACKBONES = ("backbone", "sam", "anchor")
"""Roles in which a run has a backbone."""
PRETRAINING = "pretraining"
"""The set that backbones learn from where no released weights are used: photographs that no run sees."""


def is_real(dataset: str) -> bool:
    """Whether the real set was added (`data/raw/<dataset>/SOURCE.json`)."""
    return bool(paths.read_json(paths.root() / paths.raw(dataset) / "SOURCE.json")["source"] == "real")


def obtainable(run: demands.Run, profile: profiles.Profile) -> bool:
    """Whether the weights that a run builds on are there or made here: released ones are the user's to get."""
    if profile.stand_ins:
        return True
    named = [run.assets[role] for role in BACKBONES if role in run.assets]
    return all(profile.scale("backbone", name).get("directory") for name in named)


def of_runs(demand: demands.Demand, role: str) -> list[str]:
    """Names that runs have in a role, sorted."""
    return sorted({run.assets[role] for run in demand.runs.values() if role in run.assets})


def paths_of(run: demands.Run, profile: str) -> dict[str, str]:
    """Where a run's assets lie, by role."""
    places = {
        "backbone": paths.backbone,
        "sam": paths.backbone,
        "anchor": paths.backbone,
        "codebook": paths.codebook,
        "expert": paths.run,
        "run": paths.run,
        "explanations": explanations,
    }
    return {role: str(places[role](profile, name)) for role, name in sorted(run.assets.items())}


def explanations(profile: str, protocol: str) -> str:
    """Texts for the training images of a protocol."""
    return f"data/explanations/{profile}/{protocol}.parquet"


def sets(demand: demands.Demand, profile: profiles.Profile) -> list[str]:
    """Sets that the stages here need beyond those of the runs."""
    wanted = [name for role in BACKBONES for name in of_runs(demand, role)]
    return [PRETRAINING] if wanted and profile.stand_ins else []


def stages(profile: profiles.Profile, demand: demands.Demand) -> list[Stage]:
    """Every backbone, codebook and text that a run builds on."""
    found = [_backbone(profile, name) for name in _with_needs(profile, demand)]
    for codebook in of_runs(demand, "codebook"):
        protocols = sorted({run.protocol for run in demand.runs.values() if run.assets.get("codebook") == codebook})
        found.append(_codebook(profile, codebook, sorted({name for p in protocols for name in members(p)})))
    found += [_explanations(profile, protocol) for protocol in of_runs(demand, "explanations")]
    return found


def members(protocol: str) -> list[str]:
    """Datasets of a training protocol; `tampcoco/cm` is a part of one."""
    return sorted({member.partition("/")[0] for member in datasets.load(protocol).MEMBERS})


def _with_needs(profile: profiles.Profile, demand: demands.Demand) -> list[str]:
    """Backbones that runs name and, where they are pretrained here, those that these are built on."""
    found = {name for role in BACKBONES for name in of_runs(demand, role)}
    if profile.stand_ins:
        found |= {needed for name in found for needed in _needs(name)}
    return sorted(found)


def _needs(backbone: str) -> tuple[str, ...]:
    return tuple(dag.constant(f"unforge.backbones.{backbone}", "NEEDS", ()))


def _backbone(profile: profiles.Profile, name: str) -> Stage:
    if profile.stand_ins:
        needed = [str(paths.backbone(profile.name, other)) for other in _needs(name)]
        deps = [str(paths.shards(profile.name, PRETRAINING)), *needed]
    else:
        deps = [str(profile.scale("backbone", name)["directory"])]
    return Stage(
        name=f"backbone-{name}",
        script="backbone",
        arguments=(name,),
        modules=(f"unforge.backbones.{name}",),
        deps=tuple(deps),
        keys=("machine", "model", f"backbone.{name}"),
        seed=True,
        outs=(str(paths.backbone(profile.name, name)),),
        pool="gpu",
    )


def _codebook(profile: profiles.Profile, name: str, learnt: Iterable[str]) -> Stage:
    learnt = tuple(learnt)
    arguments, deps = [name, "--sets", ",".join(learnt)], [str(paths.shards(profile.name, each)) for each in learnt]
    if is_real(POLYGONS):
        arguments += ["--polygons", str(paths.raw(POLYGONS))]
        deps.append(str(paths.raw(POLYGONS) / "SOURCE.json"))
    return Stage(
        name=f"codebook-{name}",
        script="mask_codebook",
        arguments=tuple(arguments),
        modules=("unforge.masks",),
        deps=tuple(deps),
        keys=("machine", "model", f"codebook.{name}"),
        seed=True,
        outs=(str(paths.codebook(profile.name, name)),),
        pool="gpu",
    )


def _explanations(profile: profiles.Profile, protocol: str) -> Stage:
    shards = [str(paths.shards(profile.name, dataset)) for dataset in members(protocol)]
    texts = profile.scale("explain", protocol)["texts"]
    return Stage(
        name=f"explain-{protocol}",
        script="explain",
        arguments=(protocol, *(("--texts", str(texts)) if texts else ())),
        modules=(f"unforge.datasets.{protocol}",),
        deps=(
            str(paths.protocol(profile.name, protocol) / "members.parquet"),
            *shards,
            *([str(texts)] if texts else []),
        ),
        keys=("model", f"explain.{protocol}"),
        seed=True,
        outs=(explanations(profile.name, protocol),),
    )


def headers(profile: profiles.Profile, run_name: str, run: demands.Run, slug: str) -> Stage:
    """The header-only baseline of a protocol."""
    name = profile.name
    shards = {str(paths.shards(name, dataset)) for dataset in (*members(run.protocol), *run.testsets)}
    return Stage(
        name=f"headers-{slug}",
        script="headers",
        arguments=(run_name, "--testsets", ",".join(run.testsets)),
        modules=(f"unforge.datasets.{run.protocol}",),
        deps=(str(paths.protocol(name, run.protocol) / "members.parquet"), *sorted(shards)),
        outs=(str(paths.scores(name, run_name)),),
    )


def arguments(places: Mapping[str, str]) -> tuple[str, ...]:
    """Of the train stage."""
    return tuple(part for role, place in places.items() for part in ("--asset", f"{role}={place}"))
