"""Tables in percent, with columns of other protocols, rows of another paper and cells that are left out, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import toy
from tests.unit.toy import FULL, by_place
from unforge import cells, claims, demand, markdown, specs, tables

TABLE = """\
caption: Joined
place: nowhere
protocol: catnet
percent: true
columns:
  near: {label: Near, metric: pixel_f1@0.5, testset: columbia, tolerance: 0.02}
  far: {label: Far, metric: pixel_f1@0.5, testsets: [coverage, nist16], protocol: sid, tolerance: 0.02}
  avg: {label: Mean, metric: mean, average: [near, far], tolerance: 0.02}
rows:
  - {id: full, label: Ours, line: 2, method: sparsevit, gain_over: other, printed: ["79.0%(+49.0)", "60.0", "69.5"]}
  - {id: other, label: Other, line: 3, printed: ["30.0%", "-", "30.0"]}
  - {id: dense, label: Dense, method: sparsevit, variant: dense, only: [near], block: ours}
  - {id: theirs, label: Theirs, method: sparsevit, variant: stem, of: second, block: ours}
"""
CLAIMS = """\
seed_sd: {small: 0.05}
seed_sd_source: made up
claims:
  better:
    text: Ours beats dense
    line: 2
    quote: Ours
    left: {table: table_3, row: full, columns: [near]}
    right: {table: table_3, row: dense, columns: [near]}
    seeds: 3
"""
FAR = "toy/sid/full/s0"
THEIRS = "second/{}/stem/s0"


@pytest.fixture
def joined(root: Path) -> Path:
    (root / "papers/toy/table_3.yaml").write_text(TABLE)
    (root / "papers/toy/claims.yaml").write_text(CLAIMS)
    (root / "papers/second").mkdir()
    (root / "papers/second/paper.yaml").write_text(toy.PAPER + "assets: {sparsevit-stem: {backbone: llava}}\n")
    return root


def test_runs_of_each_protocol_and_of_the_other_paper(joined: Path) -> None:
    runs = demand.demand(toy.profile(max_seeds=3), ["toy"]).runs
    assert runs["toy/sid/full/s0"].testsets == ("coverage", "nist16")
    assert "toy/sid/full/s1" not in runs, "the claim is about the other protocol's column"
    assert {name for name in runs if name.startswith("toy/catnet/dense")} >= {"toy/catnet/dense/s2"}
    assert "toy/sid/dense/s0" not in runs, "its column is left out"
    stems = {name: run for name, run in runs.items() if name.startswith("second/")}
    assert set(stems) == {THEIRS.format("catnet"), THEIRS.format("sid")}
    assert {(run.paper, run.assets["backbone"]) for run in stems.values()} == {("second", "llava")}
    wanted = demand.needs("toy", "table_3", toy.profile(max_seeds=1))
    assert set(wanted) >= {FULL.format(0), FAR, *stems}


def test_cells_of_both_protocols(joined: Path) -> None:
    toy.score(joined, FULL.format(0), "columbia", [0.8, 0.6])
    toy.score(joined, FULL.format(1), "columbia", [0.4, 0.2], seed=1)
    toy.score(joined, FAR, "coverage", [0.5, 0.5])
    toy.score(joined, FAR, "nist16", [0.1])
    toy.score(joined, THEIRS.format("catnet"), "columbia", [0.3])
    found = by_place(tables.build("toy", "table_3", toy.profile(max_seeds=3)))
    near, far, avg = (found["full", column] for column in ("near", "far", "avg"))
    assert (near["measured"], near["n_seeds"], near["protocol"]) == (pytest.approx(0.5), 2, "catnet")
    assert (far["measured"], far["n_seeds"], far["protocol"]) == (pytest.approx(0.3), 1, "sid")
    # the mean of the two columns, though one is over two sets and the other over two seeds
    assert (avg["measured"], avg["n_seeds"], avg["n"]) == (pytest.approx(0.4), 1, 5)
    assert avg["protocol"] == "catnet+sid"
    assert (found["dense", "far"]["status"], found["dense", "far"]["measured"]) == ("not_run", None)
    assert "another training run" in found["dense", "far"]["note"]
    assert found["theirs", "near"]["measured"] == pytest.approx(0.3)
    assert all(cell["percent"] for cell in found.values())


def test_percent_for_people(joined: Path) -> None:
    toy.score(joined, FULL.format(0), "columbia", [0.8, 0.6])
    text = markdown.text(tables.build("toy", "table_3", toy.profile(max_seeds=1)))
    assert "70.0 [60.0, 80.0] ~<br>p 79.0%(+49.0)" in text
    for seed in range(3):
        toy.score(joined, FULL.format(seed), "columbia", [0.8, 0.6], seed=seed)
        toy.score(joined, f"toy/catnet/dense/s{seed}", "columbia", [0.5, 0.2], seed=seed)
    verdicts = claims.build(toy.profile(max_seeds=3))
    assert verdicts["left_measured"].to_pylist() == [pytest.approx(0.7)]
    assert "| 70.0 | 35.0 | 35.0 [" in claims.text(verdicts)


def test_percent_is_compared_as_a_share(joined: Path) -> None:
    value = tables.Value(measured=0.78, status="match")
    assert tables.judged(value, "79.0%(+49.0)", 0.02, "pixel_f1@0.5", True).status == "match"
    assert tables.judged(value, "81.0", 0.02, "pixel_f1@0.5", True).status == "differs"
    assert tables.judged(value, "0.79", 0.02, "pixel_f1@0.5").status == "match"


def test_cells_that_were_not_built(joined: Path) -> None:
    found = {(c["row"], c["column"]): c for c in cells.cells(toy.profile()).to_pylist() if c["table"] == "table_3"}
    assert found["full", "avg"]["protocol"] == "catnet+sid"
    assert found["other", "near"]["status"] == "cited"
    assert found["dense", "far"]["status"] == "not_run"


def test_a_claim_needs_measured_cells_of_one_metric(joined: Path) -> None:
    path = joined / "papers/toy/claims.yaml"
    for side in ("row: dense, columns: [far]", "row: dense, columns: [avg]"):
        path.write_text(CLAIMS.replace("row: dense, columns: [near]", side))
        with pytest.raises(ValueError, match="not measured, or no single metric"):
            specs.claims("toy")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("average: [near, far]", "testset: casia1"),
        ("metric: mean, average: [near, far]", "metric: pixel_f1@0.5, average: [near, far]"),
    ],
)
def test_what_a_mean_of_columns_is(joined: Path, old: str, new: str) -> None:
    (joined / "papers/toy/table_3.yaml").write_text(TABLE.replace(old, new))
    with pytest.raises(ValueError, match=r"needs exactly one of|which is not its metric"):
        specs.tables("toy")
