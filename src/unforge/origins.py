"""Stages of provenance: models that generate images, their inverse decoders, and the signals that tell their images.

Tokenizers, priors and generated sets are shared by all papers; inverse decoders and signals are a paper's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from unforge import assets, dag, paths, profiles
from unforge import demand as demands
from unforge.dag import Stage
from unforge.provenance.config import label

MADE_OF = {"vqdiffusion": "taming"}
"""Tokenizers that are made of another one's weights."""


def obtainable(demand: demands.Demand, profile: profiles.Profile, is_real: Callable[[str], bool]) -> demands.Demand:
    """What can be built without stand-ins: models whose released weights and images the user has supplied, told from
    the sets that were added."""
    origins = frozenset(family for family in demand.origins if _supplied(family, profile))
    pools = frozenset(pool for pool in demand.pools if is_real(pool))
    there = {*pools, *map(paths.generated, origins)}
    runs = {}
    for name, run in demand.runs.items():
        kept = tuple(testset for testset in run.testsets if demands.base(testset) in there)
        if run.origin in origins and kept:
            runs[name] = replace(run, testsets=kept)
    return replace(demand, runs=runs, origins=origins, pools=pools)


def _supplied(family: str, profile: profiles.Profile) -> bool:
    source = paths.root() / paths.raw(paths.generated(family)) / "SOURCE.json"
    weights = profile.values.get("codebook", {}).get(family, {})
    return weights.get("file") is not None and source.is_file() and paths.read_json(source)["source"] == "real"


def of_sets(profile: profiles.Profile, sets: Iterable[str]) -> frozenset[str]:
    """The models whose tokenizers and images stand-ins among `sets` are made with (`GENERATOR` of their modules)."""
    if not profile.stand_ins:
        return frozenset()
    made = [name for name in sets if not assets.is_real(name)]
    return frozenset(dag.constant(f"unforge.datasets.{name}", "GENERATOR", "") for name in made) - {""}


def shared_stages(profile: profiles.Profile, demand: demands.Demand, also: frozenset[str] = frozenset()) -> list[Stage]:
    """Views of photographs, and tokenizer, prior and images of every model that runs ask for; and of those in `also`,
    which other sets are made with."""
    families = demand.origins | also
    if not families:
        return []
    name = profile.name
    views = str(paths.shards(name, "views"))
    stages = []
    if profile.stand_ins:
        stages.append(
            Stage(
                name="ingest-views",
                script="ingest",
                arguments=("views",),
                modules=("unforge.datasets.views", "unforge.forgeries.steps.views"),
                deps=(str(paths.shards(name, "photos")),),
                keys=("machine", "ingest.views"),
                seed=True,
                outs=(views,),
            )
        )
    made_of = {MADE_OF[family] for family in families & MADE_OF.keys() if profile.stand_ins}
    stages += [_codebook(profile, family, views) for family in sorted(families | made_of)]
    for family in sorted(families):
        stages += _images(profile, family, views)
    return stages


def _codebook(profile: profiles.Profile, family: str, views: str) -> Stage:
    name = profile.name
    deps = [views] if profile.stand_ins else [str(profile.values["codebook"][family]["file"])]
    if profile.stand_ins and family in MADE_OF:
        deps.append(str(paths.codebook(name, MADE_OF[family])))
    return Stage(
        name=f"codebook-{family}",
        script="codebook",
        arguments=(family,),
        modules=(f"unforge.tokenizers.{family}",),
        deps=tuple(deps),
        keys=("machine", f"codebook.{family}"),
        seed=True,
        outs=(str(paths.codebook(name, family)),),
        pool="gpu",
    )


def _images(profile: profiles.Profile, family: str, views: str) -> list[Stage]:
    """The prior of a model and what it generates; without stand-ins, the images that the user has."""
    name, codebook = profile.name, str(paths.codebook(profile.name, family))
    prior, images = str(paths.prior(name, family)), str(paths.shards(name, paths.generated(family)))
    modules = (f"unforge.tokenizers.{family}", "unforge.priors")
    generate = Stage(
        name=f"generate-{family}",
        script="generate",
        arguments=(family,),
        modules=modules,
        deps=(codebook, prior),
        keys=("machine", "model", "stand_ins", f"generate.{family}"),
        seed=True,
        outs=(images,),
        pool="gpu",
    )
    if not profile.stand_ins:
        raw = str(paths.raw(paths.generated(family)) / "SOURCE.json")
        return [replace(generate, deps=(codebook, raw), modules=(*modules, "unforge.datasets.generated"))]
    learn = Stage(
        name=f"prior-{family}",
        script="prior",
        arguments=(family,),
        modules=modules,
        deps=(codebook, views),
        keys=("machine", "model", f"prior.{family}"),
        seed=True,
        outs=(prior,),
        pool="gpu",
    )
    return [learn, generate]


def paper_stages(profile: profiles.Profile, paper: str, demand: demands.Demand) -> list[Stage]:
    """The inverse decoders that a paper's runs need."""
    wanted = {(r.origin, r.variant) for r in demand.runs.values() if r.paper == paper and r.origin}
    stages = []
    for family, encoder in sorted(wanted):
        if encoder == "own":
            continue
        inverse = label(family, encoder)
        stages.append(
            Stage(
                name=f"inverse-{inverse}",
                script="inverse",
                arguments=(family, *(("--augmented",) if encoder == "augmented" else ())),
                modules=(f"unforge.tokenizers.{family}",),
                deps=(
                    str(paths.codebook(profile.name, family)),
                    str(paths.shards(profile.name, paths.generated(family))),
                ),
                keys=("machine", f"inverse.{inverse}"),
                seed=True,
                outs=(str(paths.inverse(profile.name, inverse)),),
                pool="gpu",
            )
        )
    return stages


def generators(profile: profiles.Profile, demand: demands.Demand) -> list[Stage]:
    """What is known of the models, for people and for git."""
    name = profile.name
    inverse = {label(r.origin, r.variant) for r in demand.runs.values() if r.origin and r.variant != "own"}
    folders = [paths.codebook(name, family) for family in demand.origins]
    folders += [paths.prior(name, family) for family in demand.origins if profile.stand_ins]
    folders += [paths.inverse(name, decoder) for decoder in inverse]
    if not demand.origins:
        return []
    return [
        Stage(
            name="generators",
            script="generators",
            arguments=(",".join(sorted(demand.origins)),),
            deps=tuple(str(folder / "meta.json") for folder in folders),
            kept=tuple(f"reports/{name}/generators.{kind}" for kind in ("parquet", "md")),
        )
    ]


def run_stages(profile: profiles.Profile, run_name: str, run: demands.Run) -> list[Stage]:
    """The signals of one model and encoder on every test set that anything asks of them."""
    name = profile.name
    costly: Mapping[str, list[str]] = {
        signal: sorted(testset for other, testset in run.costly if other == signal and testset in run.testsets)
        for signal in sorted({signal for signal, _ in run.costly})
    }
    options = [f"{signal}={','.join(testsets)}" for signal, testsets in costly.items() if testsets]
    deps = [str(paths.codebook(name, run.origin))]
    if run.variant != "own":
        deps.append(str(paths.inverse(name, label(run.origin, run.variant))))
    deps += [str(paths.shards(name, base)) for base in sorted({demands.base(testset) for testset in run.testsets})]
    return [
        Stage(
            name=f"signals-{run.origin}-{run.variant}",
            script="signals",
            arguments=(
                run_name,
                "--testsets",
                ",".join(run.testsets),
                *(part for o in options for part in ("--on", o)),
            ),
            modules=(f"unforge.tokenizers.{run.origin}",),
            deps=tuple(deps),
            keys=("machine", "model", f"signals.{run.origin}"),
            seed=True,
            outs=(str(paths.scores(name, run_name)),),
            pool="gpu",
        )
    ]
