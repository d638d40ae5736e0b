"""A project with one small paper, its numbers worked out by hand: two measured rows, a cited one, an added one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unforge import paths, profiles, scores

PAPER = "title: Toy\nmethod: sparsevit\ntext: toy.txt\ncitation: none\n"

TABLE = """\
caption: A toy | table
place: nowhere
protocol: catnet
columns:
  params: {label: Parameter, metric: params_ratio, relative_to: dense, tolerance: 0.005}
  columbia_f1: {label: Columbia, metric: pixel_f1@0.5, testset: columbia, tolerance: 0.02}
  coverage_f1: {label: COVERAGE, metric: pixel_f1@0.5, testset: coverage, tolerance: 0.02}
  avg_f1: {label: AVG, metric: pixel_f1@0.5, average: [columbia_f1, coverage_f1], tolerance: 0.02}
rows:
  - {id: dense, label: Dense, line: 1, method: sparsevit, variant: dense, printed: ["1.00", "0.500", "0.400", "0.450"]}
  - {id: full, label: Ours, line: 2, method: sparsevit, printed: ["1.01", "0.790", "0.600", "0.695"], errata: known}
  - {id: other, label: Other, line: 3, printed: ["2.00", "0.300", "-", "0.300"]}
  - {id: stem, label: Stem, method: sparsevit, variant: stem, block: added}
"""

FIGURE = """\
caption: A toy figure
place: nowhere
protocol: catnet
metric: pixel_f1@0.5
panels: [{label: Blur, perturbation: blur, testset: columbia, clean: 0}]
series: [{id: full, label: Ours, method: sparsevit}]
"""

CLAIMS = """\
seed_sd: {small: 0.05}
seed_sd_source: made up
claims:
  better:
    text: Ours beats dense in mean F1
    line: 2
    quote: Ours
    left: {table: table_1, row: full, columns: [columbia_f1, coverage_f1]}
    right: {table: table_1, row: dense, columns: [columbia_f1, coverage_f1]}
    seeds: 3
  bigger:
    text: Ours has more parameters
    line: 2
    quote: Ours
    left: {table: table_1, row: full, columns: [params]}
    right: {table: table_1, row: dense, columns: [params]}
  stem:
    text: Stem beats ours on average
    line: null
    left: {table: table_1, row: stem, columns: [avg_f1]}
    right: {table: table_1, row: full, columns: [avg_f1]}
"""


def make(root: Path) -> None:
    """The paper `toy` in `root`, nothing measured."""
    folder = root / "papers" / "toy"
    folder.mkdir(parents=True)
    (root / "profiles").mkdir()
    (root / "params.yaml").write_text("profile: small\nseed: 1\n")
    for name, text in (("paper", PAPER), ("table_1", TABLE), ("figure_2", FIGURE), ("claims", CLAIMS)):
        (folder / f"{name}.yaml").write_text(text)


def profile(name: str = "small", *, stand_ins: bool = True, max_seeds: int | None = None) -> profiles.Profile:
    return profiles.Profile(
        name=name,
        seed=1,
        machine=profiles.Machine(device="cpu", dtype="float32", threads=1, workers=0),
        model="small",
        stand_ins=stand_ins,
        values={} if max_seeds is None else {"claims": {"max_seeds": max_seeds}},
    )


def score(
    root: Path,
    run: str,
    testset: str,
    f1: list[float],
    *,
    seed: int = 0,
    data: str | list[str] = "stand_in",
    scale: str = "small",
    name: str = "small",
) -> None:
    """Scores of a run with these F1 (multiples of 0.1), one image and one photograph each."""
    kinds = [data] * len(f1) if isinstance(data, str) else data
    rows: list[dict[str, Any]] = []
    for index, value in enumerate(f1):
        hits = round(value * 10)
        rows.append(
            {
                "key": f"image{index:02d}",
                "unit": f"image{index:02d}",
                "source": [f"photo{index:02d}"],
                "seed": seed,
                "testset": testset,
                "label": 1,
                "kind": "splice",
                "width": 10,
                "height": 10,
                "tp": hits,
                "fp": 10 - hits,
                "fn": 10 - hits,
                "tn": 70 + hits,
                "pixel_auc": value,
                "data": kinds[index],
                "run": run,
                "run_sha256": "r",
                "testset_sha256": "t",
                "testset_version": "1",
            }
        )
    path = root / paths.scores(name, run) / f"{testset}.parquet"
    scores.write(path, rows, {"run": run, "scale": scale, "pretraining": "", "testset": testset})


def count(root: Path, params: dict[str, int], name: str = "small") -> None:
    """Parameters of variants of sparsevit."""
    path = root / paths.counts(name, "sparsevit")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"method": "sparsevit", "variant": variant, "part": "", "input_size": 512, "params": value, "macs": 10 * value}
        for variant, value in params.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def source(root: Path, dataset: str, kind: str) -> None:
    """Whether a dataset is `real` or a `stand_in`."""
    path = root / paths.raw(dataset) / "SOURCE.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"source": kind}))


FULL = "toy/catnet/full/s{}"
DENSE = "toy/catnet/dense/s0"
"""Runs of the toy paper."""


def by_place(table: pa.Table) -> dict[tuple[str, str], dict[str, Any]]:
    return {(cell["row"], cell["column"]): cell for cell in table.to_pylist()}
