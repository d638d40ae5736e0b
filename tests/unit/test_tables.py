"""Tables from score files whose numbers are worked out by hand (see toy.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit import toy
from tests.unit.toy import DENSE, FULL, by_place
from unforge import figures, tables


def test_measured_cell_by_hand(root: Path) -> None:
    toy.score(root, FULL.format(0), "columbia", [0.6, 0.8, 1.0], seed=0)  # mean 0.8
    toy.score(root, FULL.format(1), "columbia", [0.2, 0.4, 0.6], seed=1)  # mean 0.4
    toy.score(root, "constant/all", "columbia", [0.1, 0.2, 0.3])
    cell = by_place(tables.build("toy", "table_1", toy.profile()))["full", "columbia_f1"]
    assert cell["measured"] == pytest.approx(0.6)
    assert (cell["n"], cell["n_seeds"]) == (3, 2)
    assert cell["seed_sd"] == pytest.approx(0.4 / 2**0.5)
    assert cell["ci_low"] < 0.6 < cell["ci_high"]
    assert cell["baseline_all"] == pytest.approx(0.2)
    assert cell["baseline_centre"] is None
    assert (cell["printed"], cell["line"], cell["row_label"], cell["testset"]) == ("0.790", 2, "Ours", "columbia")
    assert (cell["data"], cell["scale"], cell["status"]) == ("stand_in", "small", "not_comparable")


def test_average_is_the_mean_of_its_parts_and_has_their_worst_status(root: Path) -> None:
    profile = toy.profile()
    toy.score(root, DENSE, "columbia", [0.5, 0.7])
    built = by_place(tables.build("toy", "table_1", profile))
    assert built["dense", "avg_f1"]["measured"] is None
    assert built["dense", "avg_f1"]["status"] == "not_run"
    assert built["dense", "avg_f1"]["note"] == "no scores on coverage"
    toy.score(root, DENSE, "coverage", [0.1, 0.1, 0.4], data="real")
    cell = by_place(tables.build("toy", "table_1", profile))["dense", "avg_f1"]
    assert cell["measured"] == pytest.approx((0.6 + 0.2) / 2)
    assert (cell["n"], cell["data"], cell["status"]) == (5, "mixed", "not_comparable")
    assert cell["testset"] == "columbia+coverage"


def test_match_and_differs_need_real_data_paper_scale_and_no_stand_ins(root: Path) -> None:
    values = {"columbia": [0.7, 0.9], "coverage": [0.5, 0.9]}  # 0.8 for 0.790 printed, 0.7 for 0.600

    def statuses(*, stand_ins: bool, **changes: Any) -> list[str]:
        for testset, f1 in values.items():
            toy.score(root, FULL.format(0), testset, f1, **{"data": "real", "scale": "paper", **changes})
        built = by_place(tables.build("toy", "table_1", toy.profile(stand_ins=stand_ins)))
        return [built["full", column]["status"] for column in ("columbia_f1", "coverage_f1", "avg_f1")]

    assert statuses(stand_ins=False) == ["match", "differs", "differs"]
    assert statuses(stand_ins=True) == ["not_comparable"] * 3
    assert statuses(stand_ins=False, scale="small") == ["not_comparable"] * 3
    assert statuses(stand_ins=False, data=["real", "stand_in"]) == ["not_comparable"] * 3


def test_average_can_differ_where_its_parts_match(root: Path) -> None:
    path = root / "papers/toy/table_1.yaml"
    path.write_text(path.read_text().replace('"0.790", "0.600", "0.695"', '"0.790", "0.710", "0.900"'))
    for testset, f1 in {"columbia": [0.7, 0.9], "coverage": [0.5, 0.9]}.items():
        toy.score(root, FULL.format(0), testset, f1, data="real", scale="paper")
    built = by_place(tables.build("toy", "table_1", toy.profile(stand_ins=False)))
    assert [built["full", c]["status"] for c in ("columbia_f1", "coverage_f1", "avg_f1")] == [
        "match",
        "match",
        "differs",
    ]
    assert built["full", "avg_f1"]["note"] == "known"


def test_tolerance_is_inclusive(root: Path) -> None:
    path = root / "papers/toy/table_1.yaml"
    path.write_text(path.read_text().replace('"0.790", "0.600"', '"0.820", "0.821"'))
    for testset in ("columbia", "coverage"):
        toy.score(root, FULL.format(0), testset, [0.7, 0.9], data="real", scale="paper")
    built = by_place(tables.build("toy", "table_1", toy.profile(stand_ins=False)))
    assert [built["full", c]["status"] for c in ("columbia_f1", "coverage_f1")] == ["match", "differs"]


def test_added_row_is_never_compared(root: Path) -> None:
    toy.score(root, "toy/catnet/stem/s0", "columbia", [0.7, 0.9], data="real", scale="paper")
    cell = by_place(tables.build("toy", "table_1", toy.profile(stand_ins=False)))["stem", "columbia_f1"]
    assert (cell["printed"], cell["status"], cell["block"]) == (None, "not_comparable", "added")
    assert cell["measured"] == pytest.approx(0.8)


def test_a_set_that_was_not_added_is_unavailable_and_named(root: Path) -> None:
    for dataset in ("casia2", "fantasticreality", "imd2020", "tampcoco", "coverage"):
        toy.source(root, dataset, "real")
    toy.source(root, "columbia", "stand_in")
    built = by_place(tables.build("toy", "table_1", toy.profile(stand_ins=False)))
    assert built["full", "columbia_f1"]["status"] == "unavailable"
    assert "columbia" in built["full", "columbia_f1"]["note"]
    assert built["full", "coverage_f1"]["status"] == "not_run"
    assert built["full", "avg_f1"]["status"] == "unavailable"
    toy.source(root, "imd2020", "stand_in")
    built = by_place(tables.build("toy", "table_1", toy.profile(stand_ins=False)))
    assert built["full", "coverage_f1"]["status"] == "unavailable"
    assert "imd2020" in built["full", "coverage_f1"]["note"]


def test_operations_are_twice_the_products_and_times_are_not_measured(root: Path) -> None:
    old = "params: {label: Parameter, metric: params_ratio, relative_to: dense, tolerance: 0.005}"
    path = root / "papers/toy/table_1.yaml"
    text = toy.TABLE.replace('"1.01"', '"155.6"')
    path.write_text(text.replace(old, "params: {label: GFLOPs, metric: flops, tolerance: 5.0e+7}"))
    toy.count(root, {"": 7_780_000_000, "dense": 50_000_000})
    built = toy.by_place(tables.build("toy", "table_1", toy.profile()))
    assert (built["full", "params"]["measured"], built["full", "params"]["status"]) == (155.6e9, "match")
    assert (built["dense", "params"]["measured"], built["dense", "params"]["status"]) == (1e9, "match")
    path.write_text(text.replace(old, "params: {label: Time, metric: epoch_seconds}").replace('"155.6"', '"8min32s"'))
    cell = toy.by_place(tables.build("toy", "table_1", toy.profile()))["full", "params"]
    assert (cell["measured"], cell["status"], cell["printed"]) == (None, "not_run", "8min32s")
    assert "benchmarks/" in cell["note"]


def test_counts_are_compared_at_any_scale_on_any_data(root: Path) -> None:
    toy.count(root, {"dense": 1000, "": 1014})
    built = by_place(tables.build("toy", "table_1", toy.profile()))
    assert built["full", "params"]["measured"] == pytest.approx(1.014)
    assert built["full", "params"]["status"] == "match"
    assert (built["full", "params"]["scale"], built["full", "params"]["data"]) == ("paper", "")
    assert built["dense", "params"]["measured"] == 1.0
    assert built["stem", "params"]["status"] == "not_run"
    toy.count(root, {"dense": 1000, "": 1016, "stem": 1100})
    built = by_place(tables.build("toy", "table_1", toy.profile()))
    assert built["full", "params"]["status"] == "differs"
    assert built["full", "params"]["note"] == "known"
    assert (built["stem", "params"]["measured"], built["stem", "params"]["status"]) == (1.1, "not_comparable")


def test_nothing_is_measured_from_what_is_printed(root: Path) -> None:
    for cell in tables.build("toy", "table_1", toy.profile()).to_pylist():
        assert cell["measured"] is None
        assert cell["status"] == ("cited" if cell["row"] == "other" else "not_run")
        assert cell["baseline_all"] is None


def test_baseline_is_of_the_same_images(root: Path) -> None:
    toy.score(root, DENSE, "columbia", [0.5, 0.7])
    toy.score(root, "constant/all", "columbia", [0.1, 0.3, 0.9])
    toy.score(root, "constant/centre", "columbia", [0.1])
    cell = by_place(tables.build("toy", "table_1", toy.profile()))["dense", "columbia_f1"]
    assert cell["baseline_all"] == pytest.approx(0.2)
    assert cell["baseline_centre"] is None


def test_figure_points_share_their_images(root: Path) -> None:
    run = FULL.format(0)
    toy.score(root, run, "columbia", [0.8, 0.6, 0.1])
    for level in (3, 7, 11, 15, 19, 23):
        toy.score(root, run, f"columbia~blur{level}", [0.4, 0.2])
    toy.score(root, "constant/all", "columbia", [0.1, 0.3, 0.9])
    points = figures.build("toy", "figure_2", toy.profile()).to_pylist()
    assert [point["level"] for point in points] == [0, 3, 7, 11, 15, 19, 23]
    assert points[0]["measured"] == pytest.approx(0.7)  # without the third image, which was not perturbed
    assert [point["n"] for point in points] == [2] * 7
    assert points[1]["measured"] == pytest.approx(0.3)
    assert [point["baseline_all"] for point in points] == pytest.approx([0.2] * 7)
    assert {point["status"] for point in points} == {"not_comparable"}
    assert points[1]["testset"] == "columbia~blur3"


def test_figure_without_scores_is_not_run(root: Path) -> None:
    points = figures.build("toy", "figure_2", toy.profile()).to_pylist()
    assert {(point["measured"], point["status"]) for point in points} == {(None, "not_run")}


def test_unknown_names_are_errors_with_the_near_ones(root: Path) -> None:
    with pytest.raises(ValueError, match="table_1"):
        tables.build("toy", "table_11", toy.profile())
    with pytest.raises(ValueError, match="figure_2"):
        figures.build("toy", "figure_22", toy.profile())


def test_worst_status() -> None:
    assert tables.worst(["match", "cited", "differs"]) == "cited"
    assert tables.worst(["not_run", "unavailable"]) == "unavailable"


def test_tables_import_no_torch() -> None:
    code = "import sys, unforge.tables, unforge.claims, unforge.audit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
