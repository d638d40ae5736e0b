"""Verdicts from score files whose numbers are worked out by hand (see toy.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit import toy
from unforge import claims


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def verdicts(**options: Any) -> dict[str, dict[str, Any]]:
    return {row["claim"]: row for row in claims.build(toy.profile(**options)).to_pylist()}


def scored(root: Path, variant: str, f1: list[float], seeds: int = 1, scale: str = "small") -> None:
    for seed in range(seeds):
        for testset in ("columbia", "coverage"):
            toy.score(root, f"toy/catnet/{variant}/s{seed}", testset, f1, seed=seed, scale=scale)


def test_a_clear_difference_holds_and_its_reverse_fails(root: Path) -> None:
    scored(root, "full", [0.7, 0.8, 0.9, 0.8], seeds=3)
    scored(root, "dense", [0.3, 0.5, 0.5, 0.3], seeds=3)
    row = verdicts()["better"]
    assert row["verdict"] == "holds"
    assert (row["left_measured"], row["right_measured"]) == (pytest.approx(0.8), pytest.approx(0.4))
    assert row["difference"] == pytest.approx(0.4)
    assert 0 < row["ci_low"] <= 0.4 <= row["ci_high"]
    assert (row["n"], row["n_seeds"], row["scale"], row["data"]) == (8, 3, "small", "stand_in")
    scored(root, "full", [0.1, 0.2, 0.3, 0.2], seeds=3)
    assert verdicts()["better"]["verdict"] == "fails"


def test_an_interval_over_zero_is_undecided(root: Path) -> None:
    scored(root, "full", [0.2, 0.9, 0.3, 0.8], seeds=3)
    scored(root, "dense", [0.8, 0.2, 0.9, 0.3], seeds=3)
    row = verdicts()["better"]
    assert (row["verdict"], row["note"]) == ("undecided", "the interval includes zero")


def test_one_seed_must_exceed_twice_the_known_spread(root: Path) -> None:
    scored(root, "full", [0.5, 0.5, 0.5, 0.5])
    scored(root, "dense", [0.4, 0.4, 0.4, 0.4])
    row = verdicts()["better"]  # difference 0.1 without any variation, spread 0.05
    assert (row["n_seeds"], row["ci_low"]) == (1, pytest.approx(0.1))
    assert row["verdict"] == "undecided"
    assert "twice the spread" in row["note"]
    scored(root, "dense", [0.3, 0.3, 0.3, 0.3])
    assert verdicts()["better"]["verdict"] == "holds"


def test_one_seed_at_a_scale_of_unknown_spread_is_undecided(root: Path) -> None:
    scored(root, "full", [0.9, 0.9], scale="paper")
    scored(root, "dense", [0.1, 0.1], scale="paper")
    row = verdicts()["better"]
    assert row["verdict"] == "undecided"
    assert "not known" in row["note"]


def test_three_seeds_against_one_count_as_one(root: Path) -> None:
    scored(root, "full", [0.5, 0.5], seeds=3)
    scored(root, "dense", [0.4, 0.4], seeds=1)
    row = verdicts()["better"]
    assert (row["n_seeds"], row["verdict"]) == (1, "undecided")


def test_seeds_beyond_the_profile_are_not_read(root: Path) -> None:
    scored(root, "full", [0.9, 0.9], seeds=3)
    scored(root, "dense", [0.1, 0.1], seeds=3)
    assert verdicts()["better"]["n_seeds"] == 3
    assert verdicts(max_seeds=2)["better"]["n_seeds"] == 2


def test_counts_are_compared_exactly(root: Path) -> None:
    toy.count(root, {"dense": 1_000_000, "": 1_000_001})
    row = verdicts()["bigger"]
    assert (row["verdict"], row["difference"], row["scale"]) == ("holds", pytest.approx(1e-6), "paper")
    assert (row["ci_low"], row["n"], row["n_seeds"]) == (None, None, None)
    toy.count(root, {"dense": 1_000_000, "": 1_000_000})
    assert verdicts()["bigger"]["verdict"] == "fails"


def test_what_was_not_measured_is_undecided_and_says_so(root: Path) -> None:
    rows = verdicts()
    assert {row["verdict"] for row in rows.values()} == {"undecided"}
    assert rows["better"]["note"] == "not measured: full has no scores on columbia, coverage"
    assert rows["bigger"]["note"] == "not measured: sparsevit full was not counted"
    assert rows["better"]["difference"] is None
    assert [rows[name]["line"] for name in ("better", "stem")] == [2, None]


def test_an_average_column_is_compared_over_its_sets(root: Path) -> None:
    scored(root, "stem", [0.9, 0.8])
    scored(root, "full", [0.1, 0.2])
    row = verdicts()["stem"]
    assert row["difference"] == pytest.approx(0.7)
    assert (row["verdict"], row["n"]) == ("holds", 4)


@pytest.mark.parametrize(
    ("interval", "relation", "verdict"),
    [
        ((0.1, 0.3), "greater", "holds"),
        ((0.1, 0.3), "less", "fails"),
        ((-0.3, -0.1), "less", "holds"),
        ((-0.3, -0.1), "greater", "fails"),
        ((0.0, 0.3), "greater", "undecided"),
        ((None, None), "greater", "undecided"),
    ],
)
def test_judge(interval: tuple[float | None, float | None], relation: str, verdict: str) -> None:
    low, high = interval
    middle = 0.2 if low is None or high is None else (low + high) / 2
    assert claims.judge(middle, low, high, relation, 3, None)[0] == verdict


def test_files_are_byte_stable_and_readable(root: Path) -> None:
    scored(root, "full", [0.7, 0.8, 0.9, 0.8], seeds=3)
    scored(root, "dense", [0.3, 0.5, 0.5, 0.3], seeds=3)
    for name in ("one", "two"):
        claims.write(claims.build(toy.profile()), root / name)
    for suffix in ("parquet", "md"):
        assert (root / f"one.{suffix}").read_bytes() == (root / f"two.{suffix}").read_bytes()
    text = (root / "one.md").read_text()
    assert "| Ours beats dense in mean F1 | 2 | 0.800 | 0.400 | 0.400 [" in text
    assert "✓ holds | small scale, stand-in, n 8, 3 seeds |" in text
