"""What tables, figures and claims need, on a toy paper."""

from __future__ import annotations

from pathlib import Path

from tests.unit import toy
from tests.unit.toy import DENSE, FULL
from unforge import demand, specs


def test_demand_names_every_run_once_with_its_seeds_and_test_sets(root: Path) -> None:
    wanted = demand.demand(toy.profile())
    assert sorted(wanted.runs) == sorted(
        [
            "constant/all",
            "constant/centre",
            *(f"toy/catnet/{v}/s{s}" for v in ("dense", "full") for s in range(3)),
            "toy/catnet/stem/s0",
        ]
    )
    blurred = tuple(f"columbia~blur{level}" for level in (3, 7, 11, 15, 19, 23))
    assert wanted.runs[FULL.format(2)] == demand.Run(
        paper="toy",
        protocol="catnet",
        method="sparsevit",
        variant="",
        seed=2,
        testsets=tuple(sorted(["columbia", "coverage", *blurred])),
    )
    assert wanted.runs[DENSE].testsets == ("columbia", "coverage")
    baseline = wanted.runs["constant/all"]
    assert (baseline.paper, baseline.protocol, baseline.method, baseline.variant) == ("", "", "constant", "all")
    assert baseline.testsets == ("columbia", "coverage")
    assert wanted.counts == {"sparsevit"}
    assert wanted.perturbed == {("columbia", "blur"): (3, 7, 11, 15, 19, 23)}
    assert wanted.testsets == {"columbia", "coverage"}
    assert wanted.protocols == {"catnet"}


def test_profile_caps_the_seeds(root: Path) -> None:
    wanted = demand.demand(toy.profile(max_seeds=1))
    assert [name for name in wanted.runs if not name.endswith("s0")] == ["constant/all", "constant/centre"]


def test_needs_and_counts_of_one_entry(root: Path) -> None:
    profile = toy.profile(max_seeds=2)
    assert demand.needs("toy", "figure_2", profile) == [
        "constant/all",
        "constant/centre",
        FULL.format(0),
        FULL.format(1),
    ]
    assert demand.counts_needed("toy", "table_1") == ["sparsevit"]
    assert demand.counts_needed("toy", "figure_2") == []


def test_another_methods_run_is_named_after_it(root: Path) -> None:
    path = root / "papers/toy/table_1.yaml"
    path.write_text(
        path.read_text().replace(
            "label: Dense, line: 1, method: sparsevit, variant: dense", "label: Dense, line: 1, method: mvss"
        )
    )
    (root / "papers/toy/claims.yaml").unlink()
    runs = demand.demand(toy.profile()).runs
    assert runs["toy/catnet/mvss-full/s0"].method == "mvss"
    assert runs[FULL.format(0)].method == "sparsevit"


def test_a_run_names_what_it_builds_on(root: Path) -> None:
    path = root / "papers/toy/paper.yaml"
    text = "assets:\n  sparsevit: {backbone: clip, expert: mvss-stem}\n  sparsevit-dense: {expert: '', run: full}\n"
    path.write_text(path.read_text() + text)
    runs = demand.demand(toy.profile()).runs
    assert runs[FULL.format(2)].assets == {"backbone": "clip", "expert": "toy/catnet/mvss-stem/s0"}
    assert runs[DENSE.replace("s0", "s1")].assets == {"run": FULL.format(1)}
    expert = runs["toy/catnet/mvss-stem/s0"]
    assert (expert.method, expert.variant, expert.testsets, dict(expert.assets)) == ("mvss", "stem", (), {})


def test_levels_of_a_panel() -> None:
    panel = specs.Panel(label="JPEG", perturbation="jpeg", testset="casia1")
    assert demand.levels(panel)[0] == (100.0, "casia1~jpeg100")
