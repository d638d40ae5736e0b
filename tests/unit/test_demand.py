"""What tables, figures and claims need, on a toy paper."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_two_methods_cannot_share_a_run_name(root: Path) -> None:
    path = root / "papers/toy/table_1.yaml"
    path.write_text(
        path.read_text().replace(
            "label: Dense, line: 1, method: sparsevit, variant: dense", "label: Dense, line: 1, method: mvss"
        )
    )
    (root / "papers/toy/claims.yaml").unlink()
    with pytest.raises(ValueError, match="named by"):
        demand.demand(toy.profile())


def test_levels_of_a_panel() -> None:
    panel = specs.Panel(label="JPEG", perturbation="jpeg", testset="casia1")
    assert demand.levels(panel)[0] == (100.0, "casia1~jpeg100")
