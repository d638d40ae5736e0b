"""What the tables, figures and claims of the papers need: runs, test sets, perturbations, counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from unforge import paths, perturbations, profiles, specs

BASELINES = {"baseline_all": "all", "baseline_centre": "centre"}
"""Variants of the method `constant`, scored on the same images as everything else."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run and where it is scored. The constant baselines have no paper and no protocol."""

    paper: str
    protocol: str
    method: str
    variant: str
    seed: int
    testsets: tuple[str, ...]
    """Sorted; a perturbed one is `casia1~jpeg70`."""
    origin: str = ""
    """Provenance: the model whose images are told from others; then `variant` is the encoder."""
    costly: frozenset[tuple[str, str]] = frozenset()
    """Provenance: (signal, test set) of the signals that take too long to be had everywhere."""
    assets: Mapping[str, str] = field(default_factory=dict)
    """What it builds on, by role: backbones, a codebook and runs by name, `explanations` by protocol."""


COSTLY = frozenset({"quant_loss_opt", "quant_loss_opt_kept", "combined_opt", "latent_tracer"})
"""Signals that descend on every image."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Everything the papers ask for."""

    runs: Mapping[str, Run]
    counts: frozenset[str]
    """Methods of which parameters and multiply-accumulates are wanted."""
    perturbed: Mapping[tuple[str, str], tuple[int | float, ...]]
    """Levels by (test set, family)."""
    testsets: frozenset[str]
    """Unperturbed, of images that were forged or not."""
    protocols: frozenset[str]
    origins: frozenset[str] = frozenset()
    """Models that generate images."""
    pools: frozenset[str] = frozenset()
    """Unperturbed sets of photographs that generated images are told from."""


def seeds(paper: str, profile: profiles.Profile) -> dict[tuple[str, str, str], int]:
    """Seeds by (protocol, method, variant): the most that a claim naming one of its rows gives it.

    The profile's `claims.max_seeds`, if there is one, is the upper limit. A variant that no claim names gets 1.
    """
    most = profile.values.get("claims", {}).get("max_seeds")
    tables = specs.tables(paper)
    found: dict[tuple[str, str, str], int] = {}
    for claim in specs.claims(paper).values():
        for side in (claim.left, claim.right):
            table = tables[side.table]
            row = specs.row(table, side.row)
            if table.columns[side.columns[0]].is_count or row.method is None or row.origin:
                continue
            number = claim.seeds if most is None else min(claim.seeds, int(most))
            for protocol in {p for column in side.columns for p in table.trained(column).values()}:
                key = (protocol, row.method, row.variant)
                found[key] = max(found.get(key, 1), number)
    return found


def demand(profile: profiles.Profile, papers: Iterable[str] | None = None) -> Demand:
    """What the tables, figures and claims of `papers` (default: all) ask for, at a profile's number of seeds."""
    runs: dict[str, Run] = {}
    counts: set[str] = set()
    compared: set[str] = set()
    for paper in specs.papers() if papers is None else papers:
        number = seeds(paper, profile)
        for want in _wants(paper):
            counts |= {want.method} if want.counted else set()
            if not want.origin:
                compared |= {base(testset) for testset in (*want.testsets, *want.looked)}
            for name, seed in _named(want, number):
                known = runs.get(name)
                runs[name] = Run(
                    paper=want.paper,
                    protocol=want.protocol,
                    method=want.method,
                    variant=want.variant,
                    seed=seed,
                    testsets=tuple(sorted({*want.testsets, *(known.testsets if known else ())})),
                    origin=want.origin,
                    costly=_afforded(want, profile) | (known.costly if known else frozenset()),
                    assets={} if want.origin else _assets(want, seed),
                )
    for run in list(runs.values()):
        _with_experts(run, runs)
    if compared:
        for variant in BASELINES.values():
            runs[baseline_name(variant)] = Run(
                paper="", protocol="", method="constant", variant=variant, seed=0, testsets=tuple(sorted(compared))
            )
    perturbed: dict[tuple[str, str], set[int | float]] = {}
    for testset in {t for run in runs.values() if not run.origin for t in run.testsets if "~" in t}:
        origin, family, level = perturbations.parse(testset)
        perturbed.setdefault((origin, family), set()).add(level)
    told = {base(testset) for run in runs.values() if run.origin for testset in run.testsets}
    generated = {testset for testset in told if testset.startswith(paths.generated(""))}
    return Demand(
        runs=dict(sorted(runs.items())),
        counts=frozenset(counts),
        perturbed={key: tuple(sorted(levels)) for key, levels in sorted(perturbed.items())},
        testsets=frozenset(compared),
        protocols=frozenset(run.protocol for run in runs.values() if run.protocol and not run.origin),
        origins=frozenset(testset.removeprefix(paths.generated("")) for testset in generated),
        pools=frozenset(told - generated),
    )


def _assets(want: _Want, seed: int) -> dict[str, str]:
    """Names of what a run builds on: an expert's run is of seed 0, one whose weights are taken of the same seed."""
    paper = want.paper
    own = specs.paper(paper)
    found = dict(own.of(want.method, want.variant))
    for role, chosen in (("expert", 0), ("run", seed)):
        if role in found:
            method, _, variant = found[role].rpartition("-")
            variant = "" if variant == "full" else variant
            found[role] = specs.run_name(paper, want.protocol, method or want.method, variant, chosen)
    if "explanations" in found:
        found["explanations"] = want.protocol
    return found


def _with_experts(run: Run, runs: dict[str, Run]) -> None:
    """Add the runs that `run` builds on and that no table shows: they are trained, and scored nowhere."""
    for role in ("expert", "run"):
        name = run.assets.get(role)
        if name is None or name in runs:
            continue
        _, protocol, part, seed = name.split("/")
        method, _, variant = part.rpartition("-")
        method, variant = method or specs.paper(run.paper).method, "" if variant == "full" else variant
        want = _Want(entry="", paper=run.paper, protocol=protocol, method=method, variant=variant)
        runs[name] = Run(
            paper=run.paper, protocol=protocol, method=method, variant=variant, seed=int(seed[1:]), testsets=(),
            assets=_assets(want, int(seed[1:])),
        )  # fmt: skip
        _with_experts(runs[name], runs)


def needs(paper: str, entry: str, profile: profiles.Profile) -> list[str]:
    """Names of the runs whose scores a table or figure (`table_2`, `figure_6`) reads, baselines included."""
    number = seeds(paper, profile)
    scored = [want for want in _wants(paper) if want.entry == entry and want.testsets]
    found = {name for want in scored for name, _ in _named(want, number)}
    plain = [want for want in scored if not want.origin and not want.pictures]
    return sorted({*found, *(baseline_name(variant) for variant in BASELINES.values() if plain)})


def logged(paper: str, entry: str, profile: profiles.Profile) -> list[str]:
    """Names of the runs whose training log a figure reads."""
    number = seeds(paper, profile)
    return sorted(
        {name for want in _wants(paper) if want.entry == entry and want.log for name, _ in _named(want, number)}
    )


def _named(want: _Want, number: Mapping[tuple[str, str, str], int]) -> list[tuple[str, int]]:
    """Names and seeds of the runs that a row asks for."""
    many = number.get((want.protocol, want.method, want.variant), 1) if want.testsets else 0
    return [
        (specs.run_name(want.paper, want.protocol, want.method, want.variant, seed), seed)
        for seed in range(1 if want.log or want.looked else many)
    ]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Where the runs of a paper are to look: see `attention`."""

    runs: tuple[str, ...]
    testsets: tuple[str, ...]
    frames: int
    """Real and fake frames of each test set."""


def looks(paper: str) -> Looks | None:
    """What the figures of a paper ask of the frames that runs look at; None without such a figure."""
    drawn = [figure for figure in specs.figures(paper).values() if figure.kind == "attention"]
    if not drawn:
        return None
    return Looks(
        runs=tuple(sorted({name for want in _wants(paper) if want.looked for name, _ in _named(want, {})})),
        testsets=tuple(sorted({testset for figure in drawn for testset in figure.testsets})),
        frames=max(figure.images for figure in drawn),
    )


def attention(profile: str, paper: str) -> str:
    """Where the runs of a paper look in a few frames."""
    return f"data/attention/{profile}/{paper}.parquet"


def counts_needed(paper: str, entry: str) -> list[str]:
    """Methods whose counts a table reads."""
    return sorted({want.method for want in _wants(paper) if want.entry == entry and want.counted})


def baseline_name(variant: str) -> str:
    """`constant/all`: the run name of a constant baseline."""
    return f"constant/{variant}"


def base(testset: str) -> str:
    """The unperturbed set of a test set."""
    return testset.partition("~")[0]


def levels(panel: specs.Panel) -> list[tuple[float, str]]:
    """Points of a figure's panel: level and test set, the unperturbed one first."""
    clean = [] if panel.clean is None else [(panel.clean, panel.testset)]
    module = perturbations.load(panel.perturbation)
    return clean + [
        (float(level), perturbations.name(panel.testset, panel.perturbation, level)) for level in module.LEVELS
    ]


@dataclass(frozen=True, kw_only=True)
class _Want:
    """One row of a table, or one series of a figure, as demand."""

    entry: str
    paper: str
    """Whose run it is."""
    protocol: str
    method: str
    variant: str
    testsets: tuple[str, ...] = ()
    counted: bool = False
    log: bool = False
    """What was measured while it trained is wanted, of the first seed."""
    looked: tuple[str, ...] = ()
    """Test sets in whose frames it is wanted where the run looks, of the first seed."""
    pictures: bool = False
    """Single images are shown: no constant prediction stands beside them."""
    origin: str = ""
    costly: frozenset[tuple[str, str]] = frozenset()


def _afforded(want: _Want, profile: profiles.Profile) -> frozenset[tuple[str, str]]:
    """The costly signals that the profile has taken of the model's runs; cells of the others are `not_run`."""
    if not want.costly:
        return frozenset()
    listed = profile.scale("signals", want.origin)["costly"]
    return frozenset(pair for pair in want.costly if pair[0] in listed)


def _told(paper: str, entry: str, table: specs.Table, row: specs.Row, counted: bool) -> _Want:
    """Positives and negatives of one provenance row, and where a costly signal is asked for."""
    assert row.method is not None
    pairs = set()
    for name, column in table.columns.items():
        if not column.is_count and not table.own(row, name):
            signal = table.signal(row, name)
            pairs |= {(signal, testset) for testset in (*table.testsets(name), table.positives(row, name))}
    return _Want(
        entry=entry,
        paper=paper,
        protocol=row.origin,
        method=row.method,
        variant=row.variant,
        testsets=tuple(sorted({testset for _, testset in pairs})),
        counted=counted,
        origin=row.origin,
        costly=frozenset(pair for pair in pairs if pair[0] in COSTLY),
    )


def _wants(paper: str) -> list[_Want]:
    found = []
    for name, table in specs.tables(paper).items():
        counted = any(column.is_count for column in table.columns.values())
        for row in table.rows:
            if row.method is not None and row.origin:
                found.append(_told(paper, name, table, row, counted))
            elif row.method is not None:
                found += _measured(paper, name, table, row, counted)
    for name, figure in specs.figures(paper).items():
        testsets = {*figure.testsets, *(testset for panel in figure.panels for _, testset in levels(panel))}
        for series in figure.series:
            want = _Want(
                entry=name,
                paper=paper,
                protocol=figure.protocol or "",
                method=series.method,
                variant=series.variant,
                testsets=tuple(sorted(testsets)),
                pictures=figure.kind in ("states", "samples"),
            )
            if figure.kind == "attention":
                found.append(replace(want, testsets=(), looked=want.testsets))
                continue
            found += [want] + ([replace(want, testsets=(), log=True)] if figure.kind == "dynamics" else [])
    return found


def _measured(paper: str, entry: str, table: specs.Table, row: specs.Row, counted: bool) -> list[_Want]:
    """One row of a table, for each protocol by which its runs are trained."""
    by_protocol: dict[str, set[str]] = {}
    for column in table.measured(row):
        for testset, protocol in table.trained(column).items():
            by_protocol.setdefault(protocol, set()).add(testset)
    assert row.method is not None
    want = _Want(entry=entry, paper=row.of or paper, protocol="", method=row.method, variant=row.variant)
    scored = [
        replace(want, protocol=protocol, testsets=tuple(sorted(testsets)))
        for protocol, testsets in sorted(by_protocol.items())
    ]
    return scored + [replace(want, counted=True)] * counted
