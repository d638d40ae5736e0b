"""Cells of provenance tables: a model's images told from others by a signal, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from sklearn.metrics import roc_curve

from tests.unit import toy
from tests.unit.toy import by_place
from unforge import audit, cells, claims, demand, notation, paths, rules, scores, specs, tables

SPEC: dict[str, Any] = {
    "caption": "Told apart",
    "place": "Table 9",
    "protocol": None,
    "columns": {
        "imagenet": {"label": "ImageNet", "metric": "tpr@1%fpr", "testset": "imagenet", "tolerance": 0.02},
        "rar": {"label": "RAR", "metric": "tpr@1%fpr", "testset": "generated_rar", "tolerance": 0.02},
        "jpeg": {"label": "JPEG", "metric": "tpr@1%fpr", "testset": "imagenet~jpeg60", "tolerance": 0.02},
        "control": {"label": "Control", "metric": "tpr@1%fpr", "testset": "imagenet", "positives": "~resampled3"},
    },
    "rows": [
        {"id": "ours", "label": "Ours", "line": 1, "method": "iar_provenance", "variant": "inverse", "origin": "rar",
         "signal": "combined", "printed": ["99.4", "—", "91.7", None]},
        {"id": "aedr", "label": "AEDR", "method": "iar_provenance", "variant": "own", "origin": "var",
         "signal": "enc_loss_calibrated", "signals": {"jpeg": "latent_tracer"}},
    ],
}  # fmt: skip


@pytest.fixture
def told(root: Path) -> Path:
    (root / "papers/toy/table_9.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    (root / "papers/toy/paper.yaml").write_text(toy.PAPER.replace("sparsevit", "iar_provenance"))
    return root


def score(root: Path, run: str, testset: str, signal: str, values: list[float | None], **changes: Any) -> None:
    """A score file with one signal an image; each image is its own photograph."""
    base = testset.partition("~")[0]
    rows = [
        {
            "key": f"{base}-{i}", "unit": f"{base}-{i}", "source": [f"{base}-{i}"], "seed": 0, "testset": testset,
            "label": 0, "kind": "authentic", "origin": None, "width": 32, "height": 32, "data": "stand_in", "run": run,
            "run_sha256": "0", "testset_sha256": "0", "testset_version": "1",
            "signals": {} if value is None else {signal: value},
        }
        for i, value in enumerate(values)
    ]  # fmt: skip
    about = {"scale": "small", "pretraining": "none", **changes}
    scores.write(root / paths.scores("small", run) / f"{testset}.parquet", rows, about)


INVERSE = "toy/rar/inverse/s0"


def test_a_rate_by_hand_and_by_scikit_learn(told: Path) -> None:
    positives: list[float | None] = [0.1, 0.2, 0.3, 0.4, 0.9]
    negatives: list[float | None] = [0.35, *(1.0 + i / 200 for i in range(199))]
    score(told, INVERSE, "generated_rar", "combined", positives)
    score(told, INVERSE, "imagenet", "combined", negatives)
    cell = by_place(tables.build("toy", "table_9", toy.profile()))["ours", "imagenet"]
    # of 200 negatives 2 may lie below: 0.35 and 1.0; all five positives do
    assert cell["measured"] == 1.0
    labels = [1] * 5 + [0] * 200
    fpr, tpr, _ = roc_curve(
        labels, [-float(v) for v in positives + negatives if v is not None], drop_intermediate=False
    )
    assert cell["measured"] == tpr[sum(fpr <= 0.01) - 1]
    assert (cell["n"], cell["testset"], cell["protocol"], cell["variant"]) == (205, "imagenet", "rar", "inverse")
    assert (cell["signal"], cell["printed"], cell["status"]) == ("combined", "99.4", "not_comparable")
    # with two negatives that low, one positive more is above the threshold
    score(told, INVERSE, "imagenet", "combined", [0.15, 0.25, *negatives])
    cell = by_place(tables.build("toy", "table_9", toy.profile()))["ours", "imagenet"]
    assert cell["measured"] == pytest.approx(3 / 5)  # 0.15 and 0.25 are the two; the next negative is 0.35
    assert cell["ci_low"] <= 3 / 5 <= cell["ci_high"]


def test_images_without_the_signal_do_not_count(told: Path) -> None:
    score(told, "toy/var/own/s0", "generated_var~jpeg60", "latent_tracer", [1.0, None, 3.0, None])
    score(told, "toy/var/own/s0", "imagenet~jpeg60", "latent_tracer", [2.0, 2.5, None])
    cell = by_place(tables.build("toy", "table_9", toy.profile()))["aedr", "jpeg"]
    assert (cell["n"], cell["measured"]) == (4, 0.5)  # two negatives allow none below: 1.0 is, 3.0 is not
    score(told, "toy/var/own/s0", "imagenet~jpeg60", "other", [2.0, 2.5, None])
    cell = by_place(tables.build("toy", "table_9", toy.profile()))["aedr", "jpeg"]
    assert (cell["measured"], cell["status"]) == (None, "not_run")


def test_positives_go_the_way_of_the_negatives_or_that_of_the_control(told: Path) -> None:
    table = specs.tables("toy")["table_9"]
    assert table.positives(table.rows[0], "jpeg") == "generated_rar~jpeg60"
    assert table.positives(table.rows[0], "control") == "generated_rar~resampled3"
    assert table.positives(table.rows[0], "imagenet") == "generated_rar"


def test_a_models_own_images_are_no_negatives(told: Path) -> None:
    for cell in (
        by_place(tables.build("toy", "table_9", toy.profile()))["ours", "rar"],
        next(c for c in cells.cells(toy.profile()).to_pylist() if (c["row"], c["column"]) == ("ours", "rar")),
    ):
        assert (cell["measured"], cell["status"]) == (None, "not_run")
        assert "own images" in cell["note"]


def test_demand_names_positives_negatives_and_what_the_profile_affords(told: Path) -> None:
    profile = toy.profile()
    profile.values["signals"] = {"rar": {"costly": []}, "var": {"costly": ["latent_tracer"]}}
    found = demand.demand(profile)
    run = found.runs[INVERSE]
    assert run.testsets == (
        "generated_rar", "generated_rar~jpeg60", "generated_rar~resampled3", "imagenet", "imagenet~jpeg60",
    )  # fmt: skip
    assert (run.origin, run.variant, run.method) == ("rar", "inverse", "iar_provenance")
    costly = {("latent_tracer", "generated_var~jpeg60"), ("latent_tracer", "imagenet~jpeg60")}
    assert found.runs["toy/var/own/s0"].costly == costly
    assert found.origins == {"rar", "var"}
    assert found.pools == {"imagenet"}
    assert "imagenet" not in found.testsets  # no localisation is scored on it, no constant baseline either
    assert not [key for key in found.perturbed if key[0] == "imagenet"]
    profile.values["signals"]["var"]["costly"] = []
    assert demand.demand(profile).runs["toy/var/own/s0"].costly == frozenset()


def test_without_stand_ins_a_cell_says_what_has_to_be_supplied(told: Path) -> None:
    profile = toy.profile(stand_ins=False)
    profile.values["codebook"] = {"rar": {"file": None}, "var": {"file": "w.pth"}}
    built = by_place(tables.build("toy", "table_9", profile))
    assert built["ours", "imagenet"]["status"] == "unavailable"
    for words in (
        "imagenet: `unforge data add imagenet PATH`",
        "`unforge data add generated/rar PATH`",
        "weights of rar",
    ):
        assert words in built["ours", "imagenet"]["note"]
    assert "weights" not in built["aedr", "imagenet"]["note"]


def test_percent_is_compared_as_a_share(told: Path) -> None:
    for testset in ("generated_rar", "imagenet"):
        value = [0.0] * 100 if testset == "generated_rar" else [1.0] * 100
        score(told, INVERSE, testset, "combined", value, scale="paper")
    path = told / paths.scores("small", INVERSE)
    for file in path.glob("*.parquet"):
        table = scores.read(file)
        real = [{**row, "data": "real"} for row in table.to_pylist()]
        scores.write(file, real, {"scale": "paper", "pretraining": "none"})
    cell = by_place(tables.build("toy", "table_9", toy.profile(stand_ins=False)))["ours", "imagenet"]
    assert (cell["measured"], cell["status"]) == (1.0, "match")  # 99.4 within 0.02
    assert notation.show(1.0, "tpr@1%fpr") == "100.0"
    found = [n for n in audit.printed("toy") if n.table == "table_9"]
    assert sorted((n.column, round((n.low + n.high) / 2, 4)) for n in found) == [("imagenet", 0.994), ("jpeg", 0.917)]
    assert list(rules.ranges(found)) == []


def test_a_claim_compares_two_signals_of_the_same_images(told: Path) -> None:
    claim = {
        "text": "ours beats", "line": None, "relation": "greater",
        "left": {"table": "table_9", "row": "ours", "columns": ["imagenet"]},
        "right": {"table": "table_9", "row": "own", "columns": ["imagenet"]},
    }  # fmt: skip
    own = {**SPEC["rows"][0], "id": "own", "variant": "own", "line": None, "printed": []}
    spec = {**SPEC, "rows": [*SPEC["rows"], own]}
    (told / "papers/toy/table_9.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    content = {"seed_sd": {"small": 0.01}, "seed_sd_source": "made up", "claims": {"better": claim}}
    (told / "papers/toy/claims.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    negatives: list[float | None] = [1.0 + i / 100 for i in range(60)]
    for run, good in ((INVERSE, 0.5), ("toy/rar/own/s0", 3.0)):
        score(told, run, "generated_rar", "combined", [good] * 30 + [3.0] * 10)
        score(told, run, "imagenet", "combined", negatives)
    (row,) = claims.build(toy.profile()).to_pylist()
    assert (row["left_measured"], row["right_measured"], row["verdict"]) == (0.75, 0.0, "holds")
    assert row["n"] == 100
    # a signal that half of the images have is compared on that half: the positives that are found are not in it
    score(told, INVERSE, "generated_rar", "combined", [None] * 30 + [3.0] * 10)
    (row,) = claims.build(toy.profile()).to_pylist()
    assert (row["left_measured"], row["right_measured"], row["verdict"], row["n"]) == (0.0, 0.0, "undecided", 70)


def test_a_signal_needs_an_origin(told: Path) -> None:
    spec = {**SPEC, "rows": [{**SPEC["rows"][1], "origin": ""}]}
    (told / "papers/toy/table_9.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    with pytest.raises(ValueError, match="needs a protocol, or the rows an origin"):
        specs.tables("toy")
    spec = {**SPEC, "rows": [{**SPEC["rows"][1], "signal": ""}]}
    (told / "papers/toy/table_9.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    with pytest.raises(ValueError, match="a signal goes with an origin"):
        specs.tables("toy")
