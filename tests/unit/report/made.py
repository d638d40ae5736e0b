"""A small made-up project on disk: specs, tables, curves, claims, findings and samples of known content."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

PROFILE = "tiny"
CELL = pa.schema(
    [
        (name, pa.string())
        for name in ("paper", "table", "row", "row_label", "block", "column", "column_label", "metric")
    ]
    + [("printed", pa.string()), ("measured", pa.float64()), ("ci_low", pa.float64()), ("ci_high", pa.float64())]
    + [("n", pa.int64()), ("n_seeds", pa.int64()), ("seed_sd", pa.float64())]
    + [("baseline_all", pa.float64()), ("baseline_centre", pa.float64())]
    + [(name, pa.string()) for name in ("testset", "data", "scale", "pretraining", "status", "note")]
    + [("line", pa.int64())]
    + [(name, pa.string()) for name in ("method", "variant", "protocol", "signal")]
    + [("percent", pa.bool_())]
)
CLAIM = pa.schema(
    [
        ("paper", pa.string()),
        ("claim", pa.string()),
        ("text", pa.string()),
        ("line", pa.int64()),
        ("metric", pa.string()),
    ]
    + [(name, pa.float64()) for name in ("left_measured", "right_measured", "difference", "ci_low", "ci_high")]
    + [("relation", pa.string()), ("verdict", pa.string()), ("scale", pa.string())]
    + [("n", pa.int64()), ("n_seeds", pa.int64()), ("data", pa.string()), ("note", pa.string())]
)
FINDING = pa.schema([(name, pa.string()) for name in ("paper", "table", "row", "column", "rule", "detail")])
POINT = pa.schema(
    [("paper", pa.string()), ("figure", pa.string()), ("panel", pa.string()), ("panel_label", pa.string())]
    + [("level", pa.float64()), ("series", pa.string()), ("series_label", pa.string()), ("block", pa.string())]
    + [(name, pa.float64()) for name in ("measured", "ci_low", "ci_high")]
    + [("n", pa.int64()), ("status", pa.string()), ("data", pa.string()), ("scale", pa.string())]
)
SAMPLE = pa.schema(
    [(name, pa.string()) for name in ("testset", "key", "kind", "data", "extension")]
    + [(name, pa.binary()) for name in ("image", "mask", "prediction", "attention")]
    + [(name, pa.float64()) for name in ("f1", "anchor_x", "anchor_y")]
    + [("redistribute", pa.bool_())]
)
ROWS = [
    {
        "id": "dense",
        "label": "Uniformer",
        "method": "sparsevit",
        "variant": "dense",
        "line": 144,
        "printed": ["1.00", "0.789"],
    },
    {"id": "other", "label": "TruFor", "line": 145, "printed": ["1.05", "0.818"], "errata": "Printed twice."},
    {"id": "full", "label": "SparseViT", "method": "sparsevit", "line": 151, "printed": ["1.01", "0.827"]},
    {"id": "stem", "label": "SparseViT", "method": "sparsevit", "variant": "stem", "block": "truncated stem"},
]


def cells() -> list[dict[str, Any]]:
    """The cells of `table_2`: a count that matches, a cited row, measured rows and an added block."""
    counts = {
        "metric": "params_ratio",
        "column": "params",
        "column_label": "Parameter",
        "testset": "",
        "protocol": "catnet",
    }
    f1 = {
        "metric": "pixel_f1@0.5",
        "column": "f1",
        "column_label": "CASIAv1 F1",
        "testset": "casia1",
        "protocol": "catnet",
    }
    measured = {
        "n": 80,
        "n_seeds": 3,
        "seed_sd": 0.041,
        "baseline_all": 0.198,
        "baseline_centre": 0.212,
        "data": "stand_in",
    }
    measured |= {"scale": "small", "pretraining": "none", "status": "not_comparable"}
    values = {"dense": (0.1034, 0.0601, 0.1502), "full": (0.4567, 0.4012, 0.5123), "stem": (0.7391, 0.7001, 0.7777)}
    rows = []
    for spec in ROWS:
        shared = {"paper": "sparsevit", "table": "table_2", "row": spec["id"], "row_label": spec["label"]}
        shared |= {"block": spec.get("block", ""), "line": spec.get("line"), "method": spec.get("method")}
        shared |= {"variant": spec.get("variant", ""), "note": "", "data": "", "scale": "", "pretraining": ""}
        printed = spec.get("printed", [None, None])
        if spec["id"] == "other":
            rows += [shared | counts | {"printed": printed[0], "status": "cited"}]
            rows += [shared | f1 | {"printed": printed[1], "status": "cited"}]
            continue
        ratio = {"measured": 1.0123, "status": "match" if spec.get("printed") else "not_comparable"}
        rows += [shared | counts | ratio | {"printed": printed[0]}]
        value, low, high = values[str(spec["id"])]
        estimate = {"measured": value, "ci_low": low, "ci_high": high}
        rows += [shared | f1 | measured | estimate | {"printed": printed[1], "note": "casia1 is a stand-in"}]
    return rows


def samples(variant: str) -> list[dict[str, Any]]:
    """Images of two sets that may be shown, of a real set and of a stand-in that may not, and an authentic one."""
    rng = np.random.default_rng(len(variant))
    rows = []
    sets = {"casia1": ("stand_in", True), "columbia": ("real", True), "coverage": ("stand_in", False)}
    for testset, (data, redistribute) in (sets | {"nist16": ("real", False)}).items():
        mask = np.zeros((96, 128), dtype=np.uint8)
        mask[20:60, 40:90] = 255
        image = np.repeat((np.arange(128) * 2).astype(np.uint8)[None, :, None], 96, axis=0).repeat(3, axis=2)
        soft = np.clip(mask.astype(int) - rng.integers(0, 60, mask.shape), 0, 255).astype(np.uint8)
        row = {
            "testset": testset,
            "key": f"{testset}_1",
            "kind": "splice",
            "data": data,
            "image": encode(image, "JPEG"),
            "extension": "jpg",
        }
        row |= {"mask": encode(mask), "prediction": encode(soft), "f1": 0.5, "attention": encode(soft[::8, ::8])}
        rows.append(row | {"anchor_x": 0.5, "anchor_y": 0.4, "redistribute": redistribute})
    return [*rows, rows[0] | {"key": "authentic", "kind": "authentic", "mask": None, "attention": None, "f1": None}]


def encode(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind)
    return buffer.getvalue()


def points() -> list[dict[str, Any]]:
    """Two panels, two series; JPEG quality falls."""
    rows: list[dict[str, Any]] = []
    for panel, levels in (("jpeg", (100.0, 90.0, 70.0)), ("blur", (0.0, 3.0, 7.0))):
        for series, start in (("full", 0.45), ("stem", 0.74)):
            for step, level in enumerate(levels):
                value = start - 0.1 * step
                point = {"paper": "sparsevit", "figure": "figure_6", "panel": panel, "panel_label": panel.upper()}
                point |= {"level": level, "series": series, "series_label": f"SparseViT {series}", "block": ""}
                point |= {"measured": value, "ci_low": value - 0.05, "ci_high": value + 0.05, "n": 80}
                rows.append(point | {"status": "not_comparable", "data": "stand_in", "scale": "small"})
    return rows


def claim_rows() -> list[dict[str, Any]]:
    shared = {
        "paper": "sparsevit",
        "text": "Sparse attention beats global attention.",
        "line": 174,
        "relation": "greater",
    }
    shared |= {"metric": "pixel_f1@0.5"}
    shared |= {
        "left_measured": 0.4567,
        "right_measured": 0.1034,
        "scale": "small",
        "n": 80,
        "n_seeds": 3,
        "data": "stand_in",
    }
    decided = {"difference": 0.3533, "ci_low": 0.3001, "ci_high": 0.4004, "verdict": "holds", "note": ""}
    empty = {"difference": None, "ci_low": None, "ci_high": None, "verdict": "undecided", "note": "no scores"}
    return [
        shared | decided | {"claim": "sparse_beats_dense"},
        shared | empty | {"claim": "lff_beats_mlp", "line": None},
    ]


def save(path: Path, rows: list[dict[str, Any]], schema: pa.Schema, about: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table.replace_schema_metadata({"unforge": json.dumps(about or {})}), path)


def project(root: Path) -> Path:
    """Write the whole project below `root` and return it."""
    (root / "profiles").mkdir(parents=True)
    (root / "params.yaml").write_text(f"profile: {PROFILE}\nseed: 7\n")
    machine = {"device": "cpu", "dtype": "float32", "threads": 1, "workers": 0}
    write_yaml(root / f"profiles/{PROFILE}.yaml", {"machine": machine, "model": "small", "stand_ins": True})
    paper = root / "papers/sparsevit"
    paper.mkdir(parents=True)
    about = {"title": "Sparse attention", "method": "sparsevit", "text": "sparsevit.txt", "citation": "Su et al., 2025"}
    write_yaml(paper / "paper.yaml", about)
    columns = {
        "params": {"label": "Parameter", "metric": "params_ratio", "relative_to": "dense", "tolerance": 0.005},
        "f1": {"label": "CASIAv1 F1", "metric": "pixel_f1@0.5", "testset": "casia1", "tolerance": 0.02},
    }
    table = {
        "caption": "Ablation.",
        "place": "Table 2 (line 153)",
        "protocol": "catnet",
        "columns": columns,
        "rows": ROWS,
    }
    write_yaml(paper / "table_2.yaml", table | {"notes": ["Threshold 0.5."]})
    unbuilt = {"caption": "Heads.", "place": "Table 3", "protocol": "catnet", "columns": columns, "rows": ROWS[:1]}
    write_yaml(paper / "table_3.yaml", unbuilt)
    figure = {"caption": "Robustness.", "place": "Figure 6", "protocol": "catnet", "metric": "pixel_f1@0.5"}
    figure |= {"panels": [{"label": "JPEG", "perturbation": "jpeg", "testset": "casia1"}]}
    figure |= {"series": [{"id": "full", "label": "SparseViT", "method": "sparsevit"}]}
    write_yaml(paper / "figure_6.yaml", figure)
    reports = root / "reports" / PROFILE
    save(reports / "tables/sparsevit.table_2.parquet", cells(), CELL)
    save(reports / "tables/sparsevit.figure_6.parquet", points(), POINT)
    save(reports / "claims.parquet", claim_rows(), CLAIM)
    finding = {"paper": "sparsevit", "table": "table_4", "row": "mvss", "column": "avg_f1", "rule": "average"}
    save(reports / "audit.parquet", [finding | {"detail": "printed 0.551, the mean is 0.501"}], FINDING)
    for variant in ("", "stem", "dense", "sparse", "s2"):
        path = reports / "scores/sparsevit/catnet" / (variant or "full") / "s0/samples.parquet"
        about = {"method": "sparsevit", "variant": variant, "scale": "small", "data": "stand_in"}
        save(path, samples(variant), SAMPLE, about)
    return root


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
