"""Points of training dynamics, of states in a plane and of single images, worked out by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.stats import binomtest

from tests.unit import toy
from unforge import demand, evaluate, figures, paths, pictures, scores, specs
from unforge.report import charts
from unforge.train import log

RUN = "toy/catnet/full/s0"
SERIES = "series: [{id: full, label: Ours, method: sparsevit}]\n"
DYNAMICS = f"kind: dynamics\ncaption: C\nplace: nowhere\nprotocol: catnet\n{SERIES}"
STATES = (
    f"kind: states\ncaption: C\nplace: nowhere\nprotocol: catnet\nmetric: entanglement\ntestsets: [columbia]\n{SERIES}"
)
SAMPLES = (
    "kind: samples\ncaption: C\nplace: nowhere\nprotocol: catnet\ntestsets: [columbia]\nimages: 2\n"
    f"shows: [image, attention, prediction, mask, text]\n{SERIES}"
)


def write(root: Path, text: str) -> None:
    (root / "papers/toy/figure_3.yaml").write_text(text)


def build() -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = figures.build("toy", "figure_3", toy.profile(max_seeds=1)).to_pylist()
    return points


def logged(root: Path, steps: dict[int, tuple[float, float]]) -> None:
    folder = root / paths.run("small", RUN)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        row
        for step, (seen, right) in steps.items()
        for row in ((step, "seen_real", seen), (step, "right_real", right), (step, "total", 1.0))
    ]
    log.write(folder / "log.parquet", rows, {"run": RUN})


def test_dynamics_gather_images_of_stretches(root: Path) -> None:
    write(root, DYNAMICS)
    # 20 steps in 10 stretches; the point at step 4 is the mean over steps 3 and 4
    logged(root, {1: (2, 1), 2: (4, 2), 4: (3, 3), **dict.fromkeys(range(5, 20), (0, 0)), 20: (5, 1)})
    real = {p["level"]: p for p in build() if p["series"] == "real"}
    assert {level: (p["measured"], p["n"]) for level, p in real.items()} == {
        2.0: (0.5, 6),
        4.0: (1.0, 6),
        20.0: (0.2, 5),
    }
    assert {p["status"] for p in real.values()} == {"not_comparable"}
    others = [p for p in build() if p["series"] == "synthetic"]
    assert [(p["measured"], p["status"]) for p in others] == [(None, "not_run")]
    assert "no image of the class synthetic" in others[0]["note"]


def test_wilson_intervals_are_scipys() -> None:
    for right, seen in ((0, 5), (3, 7), (7, 7), (40, 60)):
        expected = binomtest(right, seen).proportion_ci(method="wilson")
        assert pictures.wilson(right, seen) == pytest.approx((expected.low, expected.high))


def test_dynamics_of_a_run_that_is_not_there(root: Path) -> None:
    write(root, DYNAMICS)
    points = build()
    assert [p["series"] for p in points] == ["real", "synthetic", "tampered"]
    assert all(p["measured"] is None and "was not trained" in p["note"] for p in points)
    assert "<svg" in charts.svg(pa.Table.from_pylist(points), kind="dynamics", metric=None, salt="toy")


def test_dynamics_end_with_the_accuracy_on_test_images(root: Path) -> None:
    write(root, DYNAMICS + "testsets: [columbia, coverage]\n")
    logged(root, {1: (1, 1)})
    states(root, "columbia", [("authentic", 0, [0.0]), ("authentic", 2, [0.0])])
    states(root, "coverage", [("authentic", 0, [0.0]), ("splice", 2, [0.0])])
    ended = {p["series"]: p for p in build() if p["panel"] == "full_final"}
    assert ended["real"]["measured"] == pytest.approx((0.5 + 1.0) / 2)
    assert ended["real"]["testset"] == "columbia+coverage"
    assert ended["synthetic"]["measured"] is None


def states(root: Path, testset: str, images: list[tuple[str, int, list[float]]]) -> None:
    """Scores of images of a kind, the class they are said to be, and their states."""
    toy.score(root, RUN, testset, [0.5] * len(images))
    path = root / paths.scores("small", RUN) / f"{testset}.parquet"
    table = scores.read(path)
    rows = table.to_pylist()
    for row, (kind, said, state) in zip(rows, images, strict=True):
        row |= {"kind": kind, "label": int(kind != "authentic"), "class_probs": [float(i == said) for i in range(3)]}
        row["signals"] = {f"state_{i}": value for i, value in enumerate(state)}
    scores.write(path, rows, scores.metadata(table))


def test_states_and_their_number(root: Path) -> None:
    write(root, STATES)
    rng = np.random.default_rng(0)
    kinds = ["authentic"] * 15 + ["splice"] * 15 + ["generated"] * 15
    corner = {"authentic": 0, "splice": 1, "generated": 2}
    points = [(kind, corner[kind], (20 * np.eye(4)[corner[kind]] + rng.normal(size=4)).tolist()) for kind in kinds]
    states(root, "columbia", points)
    table = figures.build("toy", "figure_3", toy.profile(max_seeds=1))
    rows = table.to_pylist()
    (whole,) = [row for row in rows if row["key"] is None]
    assert (whole["measured"], whole["n"], whole["metric"]) == (0.0, 30, "entanglement")
    placed = [row for row in rows if row["key"] is not None]
    assert [row["series"] for row in placed] == ["real"] * 15 + ["tampered"] * 15 + ["synthetic"] * 15
    places = np.array([[row["x"], row["y"]] for row in placed])
    centres = [places[i : i + 15].mean(0) for i in (0, 15, 30)]
    spread = max(
        np.linalg.norm(places[i : i + 15] - c, axis=1).max() for i, c in zip((0, 15, 30), centres, strict=True)
    )
    assert min(np.linalg.norm(a - b) for a in centres for b in centres if a is not b) > spread
    drawn = charts.svg(table, kind="states", metric="entanglement", salt="toy")
    assert "entanglement 0.00 (0.00 to 0.00), n 30" in drawn
    assert drawn == charts.svg(table, kind="states", metric="entanglement", salt="toy")


def test_states_of_nothing(root: Path) -> None:
    write(root, STATES)
    (row,) = build()
    assert (row["measured"], row["status"]) == (None, "not_run")


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()


def keep(root: Path, *images: dict[str, Any]) -> None:
    mask = np.zeros((200, 400))
    mask[50:100, 100:200] = 255
    shared = {"testset": "columbia", "kind": "splice", "data": "stand_in", "extension": "jpg", "redistribute": True}
    shared |= {"image": encoded(np.full((200, 400, 3), 90), "JPEG"), "mask": encoded(mask), "f1": 0.5}
    shared |= {
        "prediction": encoded(mask * 0.9),
        "attention": encoded(mask[::20, ::20]),
        "text": "It is <odd> & \x1b[1m",
    }
    folder = root / paths.scores("small", RUN)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"scale": "small"}
    run = evaluate.Run(name=RUN, sha256="r", seed=0, about=about)
    evaluate.write_samples(folder, [shared | image for image in images], run)


def test_samples_show_what_may_be_shown(root: Path) -> None:
    write(root, SAMPLES)
    keep(
        root,
        {"key": "whole", "kind": "generated"},
        {"key": "closed", "redistribute": False},
        {"key": "real", "redistribute": False, "data": "real"},
        {"key": "elsewhere", "testset": "coverage"},
    )
    table = figures.build("toy", "figure_3", toy.profile(max_seeds=1))
    rows = table.to_pylist()
    assert list(dict.fromkeys(row["key"] for row in rows)) == ["closed", "whole"], "tampered ones first"
    by_part = {(row["key"], row["series"]): row for row in rows}
    assert by_part["closed", "image"]["picture"] is None
    assert by_part["closed", "image"]["series_label"] == "image (left out)"
    assert by_part["closed", "mask"]["picture"] is not None
    assert by_part["whole", "prediction"]["measured"] == 0.5
    with Image.open(io.BytesIO(by_part["whole", "image"]["picture"])) as shown:
        assert (shown.size, shown.format) == ((160, 80), "JPEG")
    with Image.open(io.BytesIO(by_part["whole", "mask"]["picture"])) as shown:
        assert set(np.unique(np.asarray(shown)).tolist()) == {0, 255}
    drawn = charts.svg(table, kind="samples", metric=None, salt="toy")
    assert drawn.count("<image") == 7, "four parts of each image but the photograph that may not be passed on"
    assert "It is &lt;odd&gt; &amp;" in drawn
    assert "\x1b" not in drawn
    assert drawn == charts.svg(table, kind="samples", metric=None, salt="toy")
    assert "closed" in drawn


def test_samples_of_nothing(root: Path) -> None:
    write(root, SAMPLES)
    (row,) = build()
    assert "was not evaluated" in row["note"]
    assert "nothing to show" in charts.svg(pa.Table.from_pylist([row]), kind="samples", metric=None, salt="toy")


def test_what_the_new_kinds_ask_for(root: Path) -> None:
    profile = toy.profile(max_seeds=1)
    write(root, DYNAMICS)
    assert demand.needs("toy", "figure_3", profile) == []
    assert demand.logged("toy", "figure_3", profile) == [RUN]
    write(root, DYNAMICS + "testsets: [columbia]\n")
    assert demand.needs("toy", "figure_3", profile) == ["constant/all", "constant/centre", RUN]
    write(root, STATES)
    assert (demand.needs("toy", "figure_3", profile), demand.logged("toy", "figure_3", profile)) == ([RUN], [])
    write(root, SAMPLES)
    assert demand.needs("toy", "figure_3", profile) == [RUN]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DYNAMICS + "metric: pixel_iou\n", "metric"),
        (STATES.replace("metric: entanglement\n", ""), "metric"),
        (SAMPLES.replace("shows: [image, attention, prediction, mask, text]\n", ""), "shows"),
        (SAMPLES.replace("attention", "heat"), "heat"),
    ],
)
def test_what_a_kind_needs(root: Path, text: str, message: str) -> None:
    write(root, text)
    with pytest.raises(ValueError, match=message):
        specs.figures("toy")


ATTENTION = """\
kind: attention
caption: C
place: nowhere
protocol: catnet
testsets: [columbia]
frames: [real, fake]
images: 2
series:
  - {id: cls, label: CLS, method: sparsevit, extra: attention_cls}
  - {id: dense, label: Dense, method: sparsevit, variant: dense, extra: attention_last}
"""


def look(root: Path, *frames: dict[str, Any]) -> None:
    """A frame by itself, and the maps of two runs: of the first two, of which the first is not shown."""
    rows = []
    for frame in frames:
        shared = {"testset": "columbia", "data": "stand_in", "redistribute": True, "label": 0} | frame
        image = encoded(np.full((200, 400, 3), 90), "JPEG") if shared["redistribute"] else None
        rows.append({**shared, "run": "", "extra": "", "image": image, "side": None, "weights": None})
        for extra, weights in (("attention_cls", [0.1, 0.2, 0.3, 0.4]), ("attention_last", [1.0, 0.0, 0.0, 0.0])):
            rows.append({**shared, "run": RUN, "extra": extra, "image": None, "side": 2, "weights": weights})
    path = root / demand.attention("small", "toy")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_attention_of_runs_to_the_same_frames(root: Path) -> None:
    write(root, ATTENTION)
    look(
        root,
        *({"key": f"real{i}"} for i in range(3)),
        {"key": "fake", "label": 1, "redistribute": False},
        {"key": "kept", "label": 1, "redistribute": False, "data": "real"},
        {"key": "elsewhere", "label": 1, "testset": "coverage"},
    )
    table = figures.build("toy", "figure_3", toy.profile(max_seeds=1))
    rows = table.to_pylist()
    shown = {panel: {row["key"] for row in rows if row["panel"] == panel} for panel in ("real", "fake")}
    assert len(shown["real"]) == 2
    assert shown["fake"] == {"fake"}, "of real data that may not be passed on, nothing is shown"
    assert [row["series"] for row in rows] == ["image", "cls", "dense"] * 3
    cls, dense, image = rows[1], rows[2], rows[-3]
    assert cls["measured"] == pytest.approx(4 * 0.4)
    with Image.open(io.BytesIO(cls["picture"])) as opened:
        assert np.asarray(opened).tolist() == [[64, 128], [191, 255]]
    assert (dense["picture"], dense["status"]) == (None, "not_run")
    assert "toy/catnet/dense/s0" in dense["note"]
    assert (image["picture"], image["series_label"]) == (None, "image (left out)")
    drawn = charts.svg(table, kind="attention", metric=None, salt="toy")
    ElementTree.fromstring(drawn)
    assert drawn.count("<image") == 2 + 3, "two images that may be shown, a map of every frame"
    assert drawn.count("at most 1.60") == 3
    assert drawn == charts.svg(table, kind="attention", metric=None, salt="toy")


def test_attention_that_was_not_looked_at(root: Path) -> None:
    write(root, ATTENTION)
    rows = build()
    assert [(row["panel"], row["series"], row["status"]) for row in rows] == [
        ("real", "", "not_run"), ("fake", "", "not_run"),
    ]  # fmt: skip
    assert "nothing to show" in charts.svg(pa.Table.from_pylist(rows), kind="attention", metric=None, salt="toy")


def test_what_attention_asks_for(root: Path) -> None:
    write(root, ATTENTION)
    profile = toy.profile()
    wanted = demand.looks("toy")
    assert wanted == demand.Looks(runs=("toy/catnet/dense/s0", RUN), testsets=("columbia",), frames=2)
    assert (demand.needs("toy", "figure_3", profile), demand.logged("toy", "figure_3", profile)) == ([], [])
    (root / "papers/toy/table_1.yaml").unlink()
    (root / "papers/toy/figure_2.yaml").unlink()
    (root / "papers/toy/claims.yaml").unlink()
    alone = demand.demand(profile)
    assert {name for name, run in alone.runs.items() if run.paper} == set(wanted.runs), "one seed of each"
    assert alone.testsets == {"columbia"}
    (root / "papers/toy/figure_3.yaml").unlink()
    assert demand.looks("toy") is None
