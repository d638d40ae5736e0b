"""The recipes of CONTRIBUTING.md, put into a copy of the tree: each works without touching another file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from flows import smoke

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FENCE = r"\n\n```(?:python|yaml|json)\n(.*?)^```"
FILES = dict(re.findall(rf"^File `([^`]+)`:{FENCE}", PAGE, re.MULTILINE | re.DOTALL))
SCALES = re.findall(rf"^Add to `profiles/small\.yaml`[^\n]*:{FENCE}", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the work tree with the recipes' files, none of which replaces one that is there."""
    root = tmp_path_factory.mktemp("contributing") / "clone"
    smoke.clone(ROOT, root, "small")
    for source in root.glob("data/raw/*/SOURCE.json"):
        source.write_text('{\n "source": "stand_in"\n}\n', encoding="utf-8")
    for name, text in FILES.items():
        target = root / name
        assert not target.exists(), f"{name} is there already: the recipe needs another name"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return root


def ask(tree: Path, code: str, **given: object) -> Any:
    """What `code` gives for `answer`, in a fresh process of the copy; `given` are its variables."""
    start = "import json, sys\nglobals().update(json.loads(sys.argv[1]))\n"
    return json.loads(run(tree, sys.executable, "-c", f"{start}{code}\nprint(json.dumps(answer))", json.dumps(given)))


def run(tree: Path, *command: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def stages(tree: Path, file: str) -> dict[str, Any]:
    return dict(yaml.safe_load((tree / file).read_text(encoding="utf-8"))["stages"])


def test_there_is_a_recipe_for_each_kind_of_thing() -> None:
    folders = {str(Path(name).parent) for name in FILES}
    kinds = ("datasets", "forgeries", "perturbations", "metrics", "methods")
    assert folders == {*(f"src/unforge/{kind}" for kind in kinds), "data/raw/attic", "papers/ours"}
    assert {"papers/ours/paper.yaml", "papers/ours/table_1.yaml", "papers/ours/claims.yaml"} <= set(FILES)


def test_recipes_are_formatted_and_linted(tree: Path) -> None:
    new = [name for name in FILES if name.endswith(".py")]
    run(tree, "ruff", "format", "--check", *new)
    run(tree, "ruff", "check", *new)


def test_dataset_is_found_and_pairs_its_masks(tree: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 48), np.uint8)
    mask[8:20, 8:30] = 255
    for name in ("forged/barn-1.png", "forged/barn-2.png", "authentic/barn.png", "masks/barn-1.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), mask if "masks" in name else rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    answer = ask(
        tree,
        "from pathlib import Path\nfrom unforge import datasets\n"
        "module = datasets.load('attic')\n"
        "rows = [(f.key, f.label, f.status, list(f.source)) for f in module.find(Path(folder))]\n"
        "answer = ['attic' in datasets.names(), rows]",
        folder=str(tmp_path),
    )
    assert answer == [
        True,
        [
            ["barn-1", 1, "ok", ["attic:barn"]],
            ["barn-2", 1, "rejected", ["attic:barn"]],
            ["barn", 0, "ok", ["attic:barn"]],
        ],
    ]
    text = run(tree, "unforge", "data", "add", "attic", str(tmp_path))
    assert "3 found = 2 ok + 0 flagged + 1 rejected" in text
    described = json.loads((tree / "data/raw/attic/SOURCE.json").read_text(encoding="utf-8"))
    assert (described["source"], described["module"]) == ("real", "attic")
    (tree / "data/raw/attic/SOURCE.json").write_text(FILES["data/raw/attic/SOURCE.json"], encoding="utf-8")


def test_forgery_changes_its_region_only(tree: Path) -> None:
    known, inside, outside, share, done = ask(
        tree,
        "import numpy as np\nfrom unforge import forgeries\nfrom unforge.types import StandIn\n"
        "recipe = StandIn(kinds={'relight': 1.0}, split='test', feather=(0.0, 0.0), area=(0.1, 0.2))\n"
        "image = np.full((64, 64, 3), 100, np.uint8)\n"
        "forged, mask, done = forgeries.load('relight').forge(image, None, recipe, np.random.default_rng(0))\n"
        "moved = (forged != image).any(axis=2)\n"
        "answer = ['relight' in forgeries.names(), bool(moved[mask].all()), bool(moved[~mask].any()),"
        " float(mask.mean()), done]",
    )
    assert known
    assert inside
    assert not outside
    assert 0.05 < share < 0.25
    assert 1.15 <= max(done["gain"], 1 / done["gain"]) <= 1.4


def test_perturbation_is_a_test_sets_name_and_a_median(tree: Path) -> None:
    answer = ask(
        tree,
        "import numpy as np\nfrom unforge import perturbations, shards\n"
        "image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)\n"
        "rng = np.random.default_rng(0)\n"
        "done = perturbations.load('median').apply(image, 5, rng)\n"
        "window = image[5:10, 7:12].reshape(-1, 3)\n"
        "data, extension = perturbations.encode('median', image, 5, rng)\n"
        "answer = ['median' in perturbations.names(), perturbations.parse('casia1~median5'),"
        " done[7, 9].tolist() == np.median(window, axis=0).tolist(),"
        " extension, bool((shards.decode_image(data) == done).all())]",
    )
    assert answer == [True, ["casia1", "median", 5], True, "png", True]


def test_metric_is_the_mean_of_what_is_worked_by_hand(tree: Path) -> None:
    """Precision 3/4, 0 (nothing predicted), and an authentic image that is left out."""
    value, counted = ask(
        tree,
        "import numpy as np\nimport pyarrow as pa\nfrom unforge import metrics\n"
        "table = pa.table({'key': ['a', 'b', 'c'], 'tp': [3, 0, 0], 'fp': [1, 0, 2], 'fn': [2, 4, 0],"
        " 'tn': [4, 6, 8]})\n"
        "columns, metric = metrics.Columns.of(table), metrics.load('pixel_precision@0.5')\n"
        "answer = [metric.value(columns, np.ones((1, 3))).tolist(), metric.counts(columns).tolist()]",
    )
    assert value == [pytest.approx(0.375)]
    assert counted == [True, True, False]


def test_method_learns_predicts_and_is_loaded_as_it_was_saved(tree: Path, tmp_path: Path) -> None:
    answer = ask(
        tree,
        "from pathlib import Path\nimport torch\nfrom unforge import counts, methods\nfrom unforge.types import Batch\n"
        "torch.manual_seed(0)\n"
        "config = methods.config('residual', 'plain', 'small')\n"
        "method = methods.build('residual', config)\n"
        "mask = torch.zeros(2, 1, 32, 32)\nmask[:, :, 8:24, 8:24] = 1\n"
        "batch = Batch(image=(mask * 0.5 + torch.rand(2, 3, 32, 32) * 0.2), mask=mask, label=torch.ones(2).long(),"
        " key=('a', 'b'), unit=('a', 'b'), source=(('a',), ('b',)))\n"
        "step = torch.optim.AdamW(method.parameter_groups(0.01), lr=3e-3)\n"
        "losses = []\n"
        "for _ in range(60):\n"
        "    step.zero_grad()\n"
        "    total = method.loss(batch).total\n"
        "    total.backward()\n"
        "    step.step()\n"
        "    losses.append(float(total.detach()))\n"
        "image = torch.rand(1, 3, 30, 41)\n"
        "methods.save(method, 'residual', 'plain', config, Path(folder))\n"
        "loaded = methods.load(Path(folder))\n"
        "one, two = (m.predict(image).mask.detach() for m in (method, loaded))\n"
        "answer = ['residual' in methods.names(), losses[-1] < 0.6 * losses[0], list(one.shape),"
        " bool((one == two).all()), float(one.min()) >= 0 and float(one.max()) <= 1,"
        " config.width, config.high_pass, counts.of('residual')[''][0]]",
        folder=str(tmp_path),
    )
    weights = 3 * 64 * 9 + 7 * 64 * 64 * 9 + 64 + 8 * 64 + 1
    assert answer == [True, True, [1, 1, 30, 41], True, True, 16, False, weights]


def test_table_and_claim_ask_for_stages(tree: Path) -> None:
    before = stages(tree, "papers/sparsevit/dvc.yaml")
    run(tree, "unforge", "catalogue")
    run(tree, "unforge", "catalogue", "--check")
    ours, shared = stages(tree, "papers/ours/dvc.yaml"), stages(tree, "dvc.yaml")
    trained = {f"train-catnet-{variant}-s{seed}" for variant in ("full", "plain") for seed in range(3)}
    assert set(ours) == trained | {name.replace("train", "evaluate") for name in trained} | {"table_1"}
    train = ours["train-catnet-plain-s2"]
    assert train["cmd"] == "python stages/train.py ours/catnet/plain/s2 --method residual --profile small"
    assert "src/unforge/methods/residual.py" in train["deps"]
    assert not [dep for dep in train["deps"] if dep.startswith("src/unforge/methods/sparsevit")]
    assert ours["evaluate-catnet-full-s0"]["cmd"].split()[4] == "attic,casia1,casia1~median5"
    assert {"src/unforge/datasets/attic.py", "src/unforge/forgeries/relight.py"} <= set(shared["ingest-attic"]["deps"])
    assert shared["perturb-casia1-median"]["outs"] == ["data/shards/small/casia1~median5"]
    assert "src/unforge/perturbations/median.py" in shared["perturb-casia1-median"]["deps"]
    assert "reports/small/tables/ours.table_1.parquet" in shared["report"]["deps"]
    assert "src/unforge/metrics/pixel_precision.py" in ours["table_1"]["deps"]
    assert set(stages(tree, "papers/sparsevit/dvc.yaml")) == set(before)
    summary = {row["table"]: row for row in json.loads(run(tree, "unforge", "tables", "--paper", "ours", "--json"))}
    assert (summary["table_1"]["cells"], summary["table_1"]["not_run"]) == (6, 6)


def test_scale_values_are_those_the_stages_read(tree: Path) -> None:
    """The fragments merge into the profile, and give the same keys as the sets and methods that are there."""
    profile = yaml.safe_load((ROOT / "profiles" / "small.yaml").read_text(encoding="utf-8"))
    added: dict[str, dict[str, Any]] = {}
    for fragment in SCALES:
        for kind, entries in yaml.safe_load(fragment).items():
            added.setdefault(kind, {}).update(entries)
    assert {kind: list(entries) for kind, entries in added.items()} == {
        "ingest": ["attic"],
        "train": ["residual"],
        "evaluate": ["residual"],
    }
    like = {"ingest": "casia1", "train": "sparsevit", "evaluate": "sparsevit"}
    for kind, entries in added.items():
        for value in entries.values():
            assert set(value) == set(profile[kind][like[kind]])


@pytest.mark.slow
def test_the_table_of_the_recipes_is_built(tree: Path) -> None:
    """From photographs to the table at the smallest scale, with everything the recipes add."""
    small = {"ingest": {"images": 6, "size": 128}, "train": None, "evaluate": {"samples": 1}}
    path = tree / "profiles" / "smoke.yaml"
    profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    profile["ingest"]["attic"] = small["ingest"]
    profile["train"]["residual"] = profile["train"]["sparsevit"]
    profile["evaluate"]["residual"] = small["evaluate"]
    path.write_text(yaml.safe_dump(profile), encoding="utf-8")
    (tree / "params.yaml").write_text("profile: smoke\nseed: 0\n", encoding="utf-8")
    run(tree, "unforge", "catalogue")
    run(tree, sys.executable, "-m", "flows.walk", "ours.table_1", "--jobs", "2")
    rows = json.loads(run(tree, "unforge", "cells", "--format", "json"))
    cells = {(row["row"], row["column"]): row for row in rows if row["paper"] == "ours"}
    assert len(cells) == 6
    assert {row["status"] for row in cells.values()} == {"not_comparable"}
    assert all(0 <= row["measured"] <= 1 and row["data"] == "stand_in" for row in cells.values())
