"""What is held back, on a small real DVC repository with shard sets and samples as the stages write them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from flows import restricted
from unforge import evaluate, shards
from unforge.types import Sample

ROOT = Path(__file__).resolve().parents[3]
DVC = [sys.executable, "-m", "dvc"]
SETS = "data/shards/small"


def write_set(path: Path, name: str, data: str, redistribute: bool) -> None:
    buffer = io.BytesIO()
    seed = sum(map(ord, name))
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, "PNG")
    sample = Sample(
        key="k", image=buffer.getvalue(), extension="png", mask=None, label=0, kind="authentic", source=("k",),
        unit="k", split="test", meta={},
    )  # fmt: skip
    shards.write(path, [sample], name=name, data=data, version="1", redistribute=redistribute)


def write_samples(folder: Path, rows: list[tuple[str, str, bool]]) -> None:
    folder.mkdir(parents=True)
    names = ("testset", "data", "redistribute")
    values = [{"key": "k", "image": b"pixels", **dict(zip(names, row, strict=True))} for row in rows]
    pq.write_table(pa.Table.from_pylist(values, schema=evaluate.SAMPLES), folder / "samples.parquet")
    (folder / "casia1.parquet").write_bytes(b"scores")


def stage(out: str, deps: list[str]) -> dict[str, Any]:
    return {"cmd": f"rm -rf {out}; mkdir -p $(dirname {out}); cp -r made/{out} {out}", "deps": deps, "outs": [out]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets, scores, a model and a report, each the output of a stage that ran."""
    folder = tmp_path_factory.mktemp("restricted") / "project"
    made = folder / "made"
    write_set(made / SETS / "casia1", "casia1", "real", False)
    write_set(made / SETS / "casia1~jpeg70", "casia1~jpeg70", "real", False)
    write_set(made / SETS / "nist16", "nist16", "stand_in", True)
    write_set(made / SETS / "holiday", "holiday", "real", False)
    write_samples(
        made / "reports/small/scores/run/s0", [("nist16", "stand_in", True), ("casia1~jpeg70", "real", False)]
    )
    write_samples(made / "reports/small/scores/run/s1", [("nist16", "stand_in", True)])
    write_samples(made / "reports/small/scores/run/s2", [])
    for name in ("models/small/runs/run", "reports/small/index.html"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(name)
    raw = folder / "data/raw"
    for name, source in {"casia1": "real", "nist16": "stand_in", "holiday": "real"}.items():
        (raw / name).mkdir(parents=True)
        (raw / name / "SOURCE.json").write_text(json.dumps({"source": source}))
    scores = [f"reports/small/scores/run/s{n}" for n in range(3)]
    stages = {
        **{
            f"ingest-{name}": stage(f"{SETS}/{name}", [f"data/raw/{name}/SOURCE.json"])
            for name in ("casia1", "nist16", "holiday")
        },
        "perturb": stage(f"{SETS}/casia1~jpeg70", [f"{SETS}/casia1"]),
        "train": stage("models/small/runs/run", [f"{SETS}/nist16"]),
        "evaluate-0": stage(scores[0], [f"{SETS}/nist16", f"{SETS}/casia1~jpeg70"]),
        "evaluate-1": stage(scores[1], [f"{SETS}/nist16"]),
        "evaluate-2": stage(scores[2], [f"{SETS}/casia1"]),
        "report": stage("reports/small/index.html", scores),
    }
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run([*DVC, "init", "-q"], cwd=folder, check=True)
    (folder / ".gitignore").write_text(f"/made\n/{SETS}\n/models\n/reports\n")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    subprocess.run([*DVC, "repro", "-q"], cwd=folder, check=True)
    return folder


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(project, tmp_path / "copy", symlinks=True))


HELD = [
    f"{SETS}/casia1",
    f"{SETS}/casia1~jpeg70",
    f"{SETS}/holiday",
    "reports/small/scores/run/s0",
]


def test_real_images_are_held_back_and_models_scores_reports_and_stand_ins_are_not(project: Path) -> None:
    held = restricted.artefacts(project)
    assert sorted(held) == HELD
    assert "casia1, marked redistribute: false" in held[HELD[0]]
    assert "unforge data add casia1" in held[HELD[1]]
    assert "ask whoever has it" in held[HELD[2]]
    assert "casia1" in held[HELD[3]]
    assert "nist16" not in held[HELD[3]]


def test_the_cache_is_looked_into_when_the_work_tree_has_nothing(copy: Path) -> None:
    shutil.rmtree(copy / "data/shards")
    shutil.rmtree(copy / "reports")
    shutil.rmtree(copy / "data/raw")  # so no card or source speaks for them
    assert sorted(restricted.artefacts(copy)) == HELD


def test_the_work_tree_counts_beside_the_cache(copy: Path) -> None:
    path = copy / SETS / "nist16"
    shutil.rmtree(path)
    write_set(path, "nist16", "real", False)
    assert sorted(restricted.artefacts(copy)) == sorted([*HELD, f"{SETS}/nist16"])


def test_a_set_under_another_name_is_found_out(copy: Path) -> None:
    path = copy / "models/small/runs/run"
    path.unlink()
    write_set(path / "inner", "casia1", "real", False)
    assert "casia1" in restricted.artefacts(copy)["models/small/runs/run"]


def test_what_is_nowhere_is_told_by_card_source_and_inputs(copy: Path) -> None:
    for name in ("data/shards", "reports", "models", ".dvc/cache"):
        shutil.rmtree(copy / name)
    held = restricted.artefacts(copy)
    # whether s2 has samples cannot be known now, so it counts as if
    assert sorted(held) == sorted([*HELD, "reports/small/scores/run/s2"])
    assert "may show" in held["reports/small/scores/run/s0"]
    assert "unforge data add casia1" in held[f"{SETS}/casia1~jpeg70"]


def test_a_damaged_manifest_is_held_back(copy: Path) -> None:
    (copy / SETS / "nist16/manifest.parquet").write_bytes(b"PAR1 nonsense")
    assert "cannot be read" in restricted.artefacts(copy)[f"{SETS}/nist16"]


def test_raw_files_follow_their_source(copy: Path) -> None:
    for name in ("casia1", "nist16"):
        (copy / "data/raw" / name / "files").mkdir()
        (copy / "data/raw" / name / "files" / "1.jpg").write_bytes(b"jpeg")
        subprocess.run([*DVC, "add", "-q", f"data/raw/{name}/files"], cwd=copy, check=True)
    held = restricted.artefacts(copy)
    assert "data/raw/casia1/files" in held
    assert "data/raw/nist16/files" not in held


def test_photographs_of_packages_are_made_again_not_passed_on(copy: Path) -> None:
    path = copy / SETS / "holiday"
    shutil.rmtree(path)
    write_set(path, "photos", "real", False)
    assert "`unforge reproduce ingest-photos` make it" in restricted.artefacts(copy)[f"{SETS}/holiday"]


def test_no_model_code_is_loaded(project: Path) -> None:
    code = "import sys; from pathlib import Path; from flows import restricted; restricted.artefacts(Path('.'))\n"
    code += "assert 'torch' not in sys.modules and 'prefect' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    subprocess.run([sys.executable, "-c", code], cwd=project, env=environment, check=True)
