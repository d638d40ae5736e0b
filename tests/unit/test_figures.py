"""Points of figures that are no curves, worked out by hand. Curves: `test_tables.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit import toy
from tests.unit.toy import FULL
from unforge import demand, figures, paths, scores, specs

SERIES = "series: [{id: full, label: Ours, method: sparsevit}]\n"
BY_TYPE = f"""\
kind: by_type
caption: By type
place: nowhere
protocol: catnet
metric: pixel_f1@0.5
testsets: [columbia, coverage]
{SERIES}"""
SIGNALS = f"""\
kind: signals_by_type
caption: By layer
place: nowhere
protocol: catnet
signals: i_avg_
testsets: [columbia]
{SERIES}"""
CODEBOOK = "kind: codebook\ncaption: Codes\nplace: nowhere\ncodebook: masks\n"


def write(root: Path, name: str, text: str) -> None:
    (root / f"papers/toy/{name}.yaml").write_text(text)


def change(root: Path, testset: str, **columns: list[Any]) -> None:
    path = root / paths.scores("small", FULL.format(0)) / f"{testset}.parquet"
    rows = pq.read_table(path).to_pylist()
    about = scores.metadata(pq.read_table(path))
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    scores.write(path, rows, about)


def test_by_type_is_the_mean_over_the_sets_that_have_the_kind(root: Path) -> None:
    write(root, "figure_3", BY_TYPE)
    toy.score(root, FULL.format(0), "columbia", [0.8, 0.2])
    toy.score(root, FULL.format(0), "coverage", [0.4])
    change(root, "columbia", kind=["splice", "copy_move"])
    found = {p["panel"]: p for p in figures.build("toy", "figure_3", toy.profile(max_seeds=1)).to_pylist()}
    assert found["splice"]["measured"] == pytest.approx((0.8 + 0.4) / 2)
    assert found["splice"]["testset"] == "columbia+coverage"
    assert found["copy_move"]["measured"] == pytest.approx(0.2)
    assert found["copy_move"]["testset"] == "columbia"
    assert found["removal"]["measured"] is None


def test_signals_by_layer_and_type(root: Path) -> None:
    write(root, "figure_3", SIGNALS)
    toy.score(root, FULL.format(0), "columbia", [0.5, 0.5, 0.5])
    signals = [{"i_avg_2": 0.1, "i_avg_10": 1.5}, {"i_avg_2": 0.3, "i_avg_10": 0.5}, {"i_avg_2": 0.7, "i_avg_10": 2.0}]
    change(root, "columbia", kind=["splice", "splice", "removal"], signals=signals)
    points = figures.build("toy", "figure_3", toy.profile(max_seeds=1)).to_pylist()
    found = {(p["panel"], p["level"]): p["measured"] for p in points}
    assert found["splice", 2.0] == pytest.approx(0.2)
    assert found["splice", 10.0] == pytest.approx(1.0)
    assert found["removal", 10.0] == pytest.approx(2.0)
    assert found["copy_move", 2.0] is None
    assert {p["metric"] for p in points} == {"score_mean"}


def test_use_of_a_codebook(root: Path) -> None:
    write(root, "figure_3", CODEBOOK)
    (point,) = figures.build("toy", "figure_3", toy.profile()).to_pylist()
    assert (point["measured"], point["status"]) == (None, "not_run")
    folder = root / paths.codebook("small", "masks")
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"code": [0, 1, 2], "count": [1, 0, 3]}), folder / "usage.parquet")
    pairs = {"iou": [0.05, 0.95, 0.97, 1.0], "differing": [1.0, 0.5, 0.25, 0.0]}
    pq.write_table(pa.table(pairs), folder / "similar.parquet")
    points = figures.build("toy", "figure_3", toy.profile()).to_pylist()
    assert [p["measured"] for p in points if p["panel"] == "usage"] == [0.75, 0.25, 0.0]
    similar = {p["level"]: (p["measured"], p["n"]) for p in points if p["panel"] == "similar"}
    assert similar == {0.05: (1.0, 1), 0.95: (0.25, 3)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("testsets: [columbia, coverage]\n", "", "testsets"),
        ("metric: pixel_f1@0.5\n", "", "metric"),
        ("kind: by_type", "kind: curves", "panels"),
        ("protocol: catnet", "protocol: catnet\ncodebook: masks", "codebook"),
    ],
)
def test_what_a_figure_needs_goes_with_its_kind(root: Path, old: str, new: str, message: str) -> None:
    write(root, "figure_3", BY_TYPE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        specs.figures("toy")


WEIGHTS = """\
kind: weights
caption: Weights
place: nowhere
protocol: catnet
metric: pixel_f1@0.5
axis: weight of a loss
testsets: [columbia, coverage]
labels: {columbia: Columbia}
series:
  - {id: default, label: "0.14", method: sparsevit, level: 0.14}
  - {id: zero, label: "0", method: sparsevit, variant: dense, level: 0}
"""


def test_a_metric_over_a_weight(root: Path) -> None:
    write(root, "figure_3", WEIGHTS)
    for run, values in ((FULL.format(0), ([0.8, 0.6], [0.4])), (toy.DENSE, ([0.2, 0.4], [0.5]))):
        for testset, f1 in zip(("columbia", "coverage"), values, strict=True):
            toy.score(root, run, testset, f1)
    points = figures.build("toy", "figure_3", toy.profile(max_seeds=1)).to_pylist()
    found = {(p["series_label"], p["level"]): p["measured"] for p in points}
    expected = {
        ("Columbia", 0.0): 0.3,
        ("coverage", 0.0): 0.5,
        ("Average", 0.0): (0.3 + 0.5) / 2,
        ("Columbia", 0.14): 0.7,
        ("coverage", 0.14): 0.4,
        ("Average", 0.14): (0.7 + 0.4) / 2,
    }
    assert found == pytest.approx(expected)
    assert [p["level"] for p in points] == [0.0] * 3 + [0.14] * 3, "in the order of the weights"
    assert {p["testset"] for p in points if p["series"] == "mean"} == {"columbia+coverage"}
    assert demand.needs("toy", "figure_3", toy.profile(max_seeds=1)) == [
        "constant/all", "constant/centre", toy.DENSE, FULL.format(0),
    ]  # fmt: skip


QUANTILES = """\
kind: quantiles
caption: Attention
place: nowhere
protocol: catnet
testsets: [columbia]
series:
  - {id: a, label: A, method: sparsevit, signals: a_}
  - {id: b, label: B, method: sparsevit, signals: b_}
"""


def test_quantiles_of_real_images(root: Path) -> None:
    write(root, "figure_3", QUANTILES)
    toy.score(root, FULL.format(0), "columbia", [0.5, 0.5, 0.5])
    signals = [
        {"a_00": 0.0, "a_01": 1.0, "a_02": 4.0, "b_00": 1.0, "a_mean": 9.0},
        {"a_00": 0.5, "a_01": 2.0, "a_02": 8.0, "b_00": 3.0, "a_mean": 9.0},
        {"a_00": 7.0, "a_01": 7.0, "a_02": 7.0, "b_00": 7.0, "a_mean": 9.0},
    ]
    change(root, "columbia", label=[0, 0, 1], kind=["authentic", "authentic", "splice"], signals=signals)
    points = figures.build("toy", "figure_3", toy.profile(max_seeds=1)).to_pylist()
    found = {(p["series"], p["level"]): p["measured"] for p in points}
    assert found == {("a", 0.0): 0.25, ("a", 0.5): 1.5, ("a", 1.0): 6.0, ("b", 0.0): 2.0}
    assert {(p["n"], p["baseline_all"], p["status"]) for p in points} == {(2, None, "not_comparable")}


def test_quantiles_of_nothing(root: Path) -> None:
    write(root, "figure_3", QUANTILES)
    points = figures.build("toy", "figure_3", toy.profile(max_seeds=1)).to_pylist()
    assert [(p["series"], p["level"], p["measured"], p["status"]) for p in points] == [
        ("a", 0.0, None, "not_run"), ("b", 0.0, None, "not_run"),
    ]  # fmt: skip
