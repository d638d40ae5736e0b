"""Writes the dvc.yaml files from what the tables, figures and claims of `papers/` ask for.

`dvc.yaml` has the stages all papers share, `papers/<paper>/dvc.yaml` a paper's own. Every stage lists its
data, its assets and the files of its code's import closure, so that editing one method stales the runs of
that method and nothing else; scale values are DVC params of the stage's own keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from unforge import assets, datasets, origins, paths, perturbations, profiles, specs
from unforge import demand as demands
from unforge.assets import is_real
from unforge.dag import Stage

HEADER = "# Written by `unforge catalogue`: change papers/, profiles/ or the code instead.\n"


def obtainable(demand: demands.Demand, profile: profiles.Profile) -> demands.Demand:
    """What can be built: all of it with stand-ins, else what needs only data that were added.

    Cells of the rest are `unavailable`; `unforge data add` and `unforge catalogue` bring their stages.
    """
    if profile.stand_ins:
        return demand
    testsets = frozenset(t for t in demand.testsets if is_real(t))
    protocols = frozenset(p for p in demand.protocols if all(map(is_real, assets.members(p))))
    runs = {
        name: replace(run, testsets=tuple(t for t in run.testsets if demands.base(t) in testsets))
        for name, run in demand.runs.items()
        if not run.origin and (not run.protocol or run.protocol in protocols) and assets.obtainable(run, profile)
    }
    built = {name for run in runs.values() for role in ("expert", "run") if (name := run.assets.get(role))}
    ready = origins.obtainable(demand, profile, is_real)
    return replace(
        demand,
        runs={name: run for name, run in runs.items() if run.testsets or name in built} | dict(ready.runs),
        perturbed={key: levels for key, levels in demand.perturbed.items() if key[0] in testsets},
        testsets=testsets,
        protocols=protocols,
        origins=ready.origins,
        pools=ready.pools,
    )


def _slug(name: str) -> str:
    return name.replace("/", "-")


def shared_stages(profile: profiles.Profile, demand: demands.Demand) -> list[Stage]:
    """Data, backbones, perturbations, baselines, counts; and claims, audit and report over all papers."""
    name = profile.name
    stages = _pool(name) if profile.stand_ins else []
    members = {m for p in demand.protocols for m in assets.members(p)}
    sets = sorted({*demand.testsets, *demand.pools, *members})
    stages += [_ingest(profile, dataset) for dataset in sets]
    stages += [_ingest(profile, dataset, made=True) for dataset in assets.sets(demand, profile)]
    stages += assets.stages(profile, demand)
    about = origins.generators(profile, demand)
    stages += [*origins.shared_stages(profile, demand, origins.of_sets(profile, sets)), *about]
    for protocol in sorted(demand.protocols):
        testsets = sorted(demand.testsets)
        stages.append(
            Stage(
                name=f"protocol-{protocol}",
                script="protocol",
                arguments=(protocol, "--testsets", ",".join(testsets)),
                modules=(f"unforge.datasets.{protocol}",),
                deps=tuple(
                    f"{paths.shards(name, d)}/manifest.parquet" for d in sorted({*assets.members(protocol), *testsets})
                ),
                outs=tuple(str(paths.protocol(name, protocol) / f"{part}.parquet") for part in ("members", "leaks")),
            )
        )
    for (testset, family), levels in sorted(demand.perturbed.items()):
        stages.append(
            Stage(
                name=f"perturb-{testset}-{family}",
                script="perturb",
                arguments=(testset, family, "--levels", ",".join(f"{level:g}" for level in levels)),
                modules=(f"unforge.perturbations.{family}",),
                deps=(str(paths.shards(name, testset)),),
                keys=(f"perturb.{testset}",),
                seed=True,
                outs=tuple(str(paths.shards(name, perturbations.name(testset, family, level))) for level in levels),
            )
        )
    for method in sorted(demand.counts):
        stages.append(
            Stage(
                name=f"count-{method}",
                script="count",
                arguments=(method,),
                modules=(f"unforge.methods.{method}",),
                outs=(str(paths.counts(name, method)),),
            )
        )
    for run_name, run in sorted(demand.runs.items()):
        if not run.paper:
            stages += run_stages(profile, run_name, run)
    papers = specs.papers()
    specs_files = sorted(
        str(p.relative_to(paths.root())) for p in (paths.root() / "papers").glob("*/*.yaml") if p.name != "dvc.yaml"
    )
    scored = {str(paths.scores(name, run)) for run, value in demand.runs.items() if value.paper and value.testsets}
    counts = {str(paths.counts(name, method)) for method in demand.counts}
    claim_files = tuple(f"reports/{name}/claims.{kind}" for kind in ("parquet", "md"))
    audit_files = tuple(f"reports/{name}/audit.{kind}" for kind in ("parquet", "md"))
    built = [
        str(paths.table(name, f"{paper}.{table}")) + ".parquet"
        for paper in papers
        for table in [*specs.tables(paper), *specs.figures(paper)]
    ]
    stages.append(
        Stage(
            name="claims",
            script="claims",
            arguments=(),
            modules=("unforge.metrics",),
            keys=("claims",),
            seed=True,
            deps=tuple(sorted(scored | counts)),
            files=tuple(specs_files),
            kept=claim_files,
        )
    )
    stages.append(Stage(name="audit", script="audit", arguments=(), files=tuple(specs_files), kept=audit_files))
    stages.append(
        Stage(
            name="report",
            script="report",
            arguments=(),
            deps=(*built, claim_files[0], audit_files[0], *sorted(scored), *(s.kept[0] for s in about)),
            files=(*specs_files, "src/unforge"),
            keys=("model",),
            seed=True,
            outs=(str(paths.report(name)),),
        )
    )
    return stages


def _pool(name: str) -> list[Stage]:
    """What stand-ins are made of: photographs, and the autoencoder that regenerates regions."""
    photos = str(paths.shards(name, "photos"))
    return [
        Stage(
            name="ingest-photos",
            script="ingest",
            arguments=("photos",),
            modules=("unforge.datasets.photos",),
            seed=True,
            outs=(photos,),
        ),
        Stage(
            name="backbone-autoencoder",
            script="backbone",
            arguments=("autoencoder",),
            modules=("unforge.backbones.autoencoder",),
            deps=(photos,),
            keys=("machine", "model", "backbone.autoencoder"),
            seed=True,
            outs=(str(paths.backbone(name, "autoencoder")),),
            pool="gpu",
        ),
    ]


def _ingest(profile: profiles.Profile, dataset: str, made: bool = False) -> Stage:
    """`made`: there is no real set of that name."""
    name = profile.name
    source = paths.raw(dataset) / "SOURCE.json"
    module = datasets.load(dataset if made else paths.read_json(paths.root() / source).get("module", dataset))
    modules = [module.__name__]
    deps = [] if made else [str(source)]
    if made or not is_real(dataset):
        deps.append(str(paths.shards(name, "photos")))
        modules.append("unforge.forgeries")
        if generator := getattr(module, "GENERATOR", ""):
            modules.append(f"unforge.tokenizers.{generator}")
            deps += [str(paths.codebook(name, generator)), str(paths.shards(name, paths.generated(generator)))]
        elif {"regenerated", "generated"} & set(getattr(module.STAND_IN, "kinds", ())):
            modules.append("unforge.backbones.autoencoder")
            deps.append(str(paths.backbone(name, "autoencoder")))
    return Stage(
        name=f"ingest-{dataset}",
        script="ingest",
        arguments=(dataset,),
        modules=tuple(modules),
        deps=tuple(deps),
        keys=("machine", f"ingest.{dataset}"),
        seed=True,
        outs=(str(paths.shards(name, dataset)),),
    )


def run_stages(profile: profiles.Profile, run_name: str, run: demands.Run) -> list[Stage]:
    """Train one run and score it on every test set that anything asks of it."""
    name = profile.name
    if run.method == assets.HEADERS:
        return [assets.headers(profile, run_name, run, _slug(run_name.removeprefix(f"{run.paper}/")))]
    method = f"unforge.methods.{run.method}"
    places = assets.paths_of(run, name)
    expert = run.assets.get("expert")
    # what a run builds on is loaded by name: it is in no import statement
    used = [method, *([f"unforge.methods.{_method(expert)}"] if expert else [])]
    used += [f"unforge.backbones.{run.assets[role]}" for role in assets.BACKBONES if role in run.assets]
    train_deps = list(places.values())
    learnt = list(used)
    if run.protocol and "run" not in places:
        learnt.append(f"unforge.datasets.{run.protocol}")
        train_deps.append(str(paths.protocol(name, run.protocol) / "members.parquet"))
        train_deps += [str(paths.shards(name, m)) for m in assets.members(run.protocol)]
    model = str(paths.run(name, run_name))
    slug = _slug(run_name.removeprefix(f"{run.paper}/"))
    named = run_name.startswith(f"{run.method}/") or f"/{run.method}-" in run_name
    trained = Stage(
        name=f"train-{slug}",
        script="train",
        arguments=(run_name, *(() if named else ("--method", run.method)), *assets.arguments(places)),
        modules=tuple(learnt),
        deps=tuple(train_deps),
        keys=("machine", "model", f"train.{run.method}"),
        seed=True,
        outs=(model,),
        pool="gpu",
    )
    if not run.testsets:
        return [trained]
    scored = Stage(
        name=f"evaluate-{slug}",
        script="evaluate",
        arguments=(run_name, "--testsets", ",".join(run.testsets)),
        modules=tuple(used),
        deps=(model, *(str(paths.shards(name, t)) for t in run.testsets)),
        keys=("machine", f"evaluate.{run.method}"),
        outs=(str(paths.scores(name, run_name)),),
        pool="gpu",
    )
    return [trained, scored]


def _method(run_name: str) -> str:
    """The method of a run: the one its name says, or the paper's own."""
    paper, _, part, _ = run_name.split("/")
    return part.rpartition("-")[0] or specs.paper(paper).method


def paper_stages(profile: profiles.Profile, paper: str, demand: demands.Demand) -> list[Stage]:
    """Runs, scores, tables and figures of one paper."""
    name = profile.name
    stages: list[Stage] = []
    for run_name, run in sorted(demand.runs.items()):
        if run.paper == paper:
            stages += (origins.run_stages if run.origin else run_stages)(profile, run_name, run)
    stages += origins.paper_stages(profile, paper, demand)
    attention = _attention(profile, paper, demand)
    stages += attention
    folder = f"papers/{paper}"
    entries: list[tuple[str, str, specs.Table | specs.Figure]] = [
        *(("table", entry, table) for entry, table in specs.tables(paper).items()),
        *(("figure", entry, figure) for entry, figure in specs.figures(paper).items()),
    ]
    for script, entry, spec in entries:
        runs = [run for run in demands.needs(paper, entry, profile) if run in demand.runs]
        counts = demands.counts_needed(paper, entry)
        base = str(paths.table(name, f"{paper}.{entry}"))
        families = {panel.perturbation for panel in spec.panels} if isinstance(spec, specs.Figure) else set()
        codebooks = [spec.codebook] if isinstance(spec, specs.Figure) and spec.codebook else []
        looks = [stage.outs[0] for stage in attention if isinstance(spec, specs.Figure) and spec.kind == "attention"]
        logs = [run for run in demands.logged(paper, entry, profile) if run in demand.runs]
        used = [f"unforge.perturbations.{family}" for family in sorted(families)]
        protocols = spec.protocols() if isinstance(spec, specs.Table) else filter(None, [spec.protocol])
        used += [f"unforge.datasets.{protocol}" for protocol in protocols]
        # of the other tables only the number of seeds matters, which is in `deps` as the runs' scores
        files = (f"{folder}/paper.yaml", f"{folder}/{entry}.yaml", f"{folder}/claims.yaml")
        stages.append(
            Stage(
                name=entry,
                script=script,
                arguments=(f"{paper}.{entry}",),
                modules=("unforge.metrics", *used),
                deps=tuple(
                    sorted(
                        {str(paths.scores(name, run)) for run in runs}
                        | {str(paths.counts(name, method)) for method in counts}
                        | {str(paths.codebook(name, codebook)) for codebook in codebooks}
                        | {str(paths.run(name, run)) for run in logs}
                        | set(looks)
                    )
                ),
                files=tuple(file for file in files if (paths.root() / file).is_file()),
                keys=("claims", "stand_ins"),
                seed=True,
                kept=tuple(
                    f"{base}.{kind}" for kind in (("parquet", "md") if script == "table" else ("parquet", "svg"))
                ),
            )
        )
    return stages


def _attention(profile: profiles.Profile, paper: str, demand: demands.Demand) -> list[Stage]:
    """Where a paper's runs look in a few frames: all of them together, once they can be trained."""
    wanted = demands.looks(paper)
    if wanted is None or {*wanted.runs} - {*demand.runs} or {*wanted.testsets} - demand.testsets:
        return []
    runs, name = [demand.runs[run] for run in wanted.runs], profile.name
    used = {f"unforge.methods.{run.method}" for run in runs}
    used |= {f"unforge.backbones.{run.assets[role]}" for run in runs for role in assets.BACKBONES if role in run.assets}
    return [
        Stage(
            name="attention",
            script="attention",
            arguments=(
                *(paper, "--testsets", ",".join(wanted.testsets), "--runs", ",".join(wanted.runs)),
                *("--frames", str(wanted.frames)),
            ),
            modules=tuple(sorted(used)),
            deps=tuple(
                [str(paths.run(name, run)) for run in wanted.runs]
                + [str(paths.shards(name, testset)) for testset in wanted.testsets]
            ),
            keys=("machine",),
            seed=True,
            outs=(demands.attention(name, paper),),
            pool="gpu",
        )
    ]


def render(stages: Iterable[Stage], profile: str, wdir: str | None) -> str:
    """Text of a dvc.yaml: stages sorted by name."""
    value: Mapping[str, Any] = {
        "stages": {s.name: s.entry(profile, wdir) for s in sorted(stages, key=lambda s: s.name)}
    }
    return HEADER + yaml.safe_dump(value, sort_keys=False, width=120)


def files(profile: profiles.Profile | None = None) -> dict[Path, str]:
    """Path and text of every dvc.yaml, for the active profile."""
    profile = profile or profiles.load()
    demand = obtainable(demands.demand(profile), profile)
    texts = {Path("dvc.yaml"): render(shared_stages(profile, demand), profile.name, None)}
    for paper in specs.papers():
        texts[Path("papers") / paper / "dvc.yaml"] = render(paper_stages(profile, paper, demand), profile.name, "../..")
    return texts


def write() -> list[Path]:
    """Write what differs; the paths written."""
    written = []
    for path, text in files().items():
        if stale(path, text):
            (paths.root() / path).write_text(text, encoding="utf-8")
            written.append(path)
    return written


def check() -> list[Path]:
    """The dvc.yaml files that are not what `write` would write."""
    return [path for path, text in files().items() if stale(path, text)]


def stale(path: Path, text: str) -> bool:
    """Whether the file is not there or has another text."""
    file = paths.root() / path
    return not file.is_file() or file.read_text(encoding="utf-8") != text
