"""The dvc.yaml files against what stages really load and read, and against DVC itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import copy_project
from tests.unit import toy
from unforge import catalogue, specs

ROOT = Path(__file__).resolve().parents[2]
DVC = [sys.executable, "-m", "dvc"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TINY = {
    "claims": {"max_seeds": 1},
    "backbone": {"autoencoder": {"steps": 1, "batch": 2, "crop": 64, "checkpoint_every": 1}},
    "perturb": {"columbia": {"images": 2}},
}
TRAIN = {"steps": 1, "batch": 2, "crop": 64, "validate_every": 1, "validation_images": 2, "checkpoint_every": 1}


def stages(root: Path) -> dict[str, dict[str, Any]]:
    """Every stage by its addressing, as the committed files have it."""
    found = {}
    for file in [root / "dvc.yaml", *sorted(root.glob("papers/*/dvc.yaml"))]:
        prefix = "" if file.parent == root else f"{file.relative_to(root)}:"
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))["stages"]
        found |= {prefix + name: entry for name, entry in entries.items()}
    return found


def outs(stage: Mapping[str, Any]) -> list[str]:
    return [out if isinstance(out, str) else next(iter(out)) for out in stage["outs"]]


def keys(stage: Mapping[str, Any]) -> list[str]:
    """Keys of the profile that the stage names as params."""
    return [
        key for param in stage.get("params", []) if isinstance(param, dict) for group in param.values() for key in group
    ]


def covered(path: str, by: list[str]) -> bool:
    """Whether `path` is one of these files or lies in one of these folders."""
    return any(path == other or path.startswith(f"{other}/") for other in by)


def unforge(root: Path, *arguments: str, source: Path = ROOT / "src") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unforge.cli", *arguments]
    return subprocess.run(
        command, cwd=root, env={**ENVIRONMENT, "PYTHONPATH": str(source)}, capture_output=True, text=True
    )


def make_toy(root: Path) -> None:
    """In a copied project, the paper `toy` alone, at a scale of seconds, and its dvc.yaml files."""
    shutil.rmtree(root / "papers")
    (root / "toy").mkdir()
    toy.make(root / "toy")
    (root / "toy" / "papers").rename(root / "papers")
    shutil.rmtree(root / "toy")
    file = root / "profiles" / "small.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8")) | TINY
    values["train"]["sparsevit"] = TRAIN
    values["ingest"] = {name: {"images": 16, "size": 80} for name in values["ingest"]}
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    done = unforge(root, "catalogue")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def toy_project(project: Path) -> Path:
    make_toy(project)
    return project


def test_stages_name_all_they_load_and_read(toy_project: Path) -> None:
    """Every stage of a project is run, in order, and what it touched is compared with its deps and params."""
    found, order = stages(toy_project), list[str]()
    made = {out for stage in found.values() for out in outs(stage)}
    while len(order) < len(found):
        there = {out for name in order for out in outs(found[name])}
        waiting = made - there
        ready = [n for n in found if n not in order and not any(covered(d, list(waiting)) for d in found[n]["deps"])]
        assert ready
        order += ready
    result = toy_project / "result.json"
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("recorder.py")), str(result)],
        input="".join(f"{found[name]['cmd']}\n" for name in order),
        cwd=toy_project, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}, text=True, check=True, timeout=300,
    )  # fmt: skip
    shared = ["params.yaml", "profiles/small.yaml"]
    problems = []
    for name, record in zip(order, json.loads(result.read_text(encoding="utf-8")), strict=True):
        stage = found[name]
        if record["status"] != 0:
            problems.append(f"{name} failed: {record['status']}")
        deps, allowed = stage["deps"], [*stage["deps"], *outs(stage), *shared]
        code = [file for file in record["code"] if not covered(file, deps) and not empty(toy_project / file)]
        read = [file for file in record["read"] if not covered(file, allowed) and not file.startswith(".")]
        if name.split(":")[-1] == f"table_{name[-1]}" or "figure" in name:
            read = [file for file in read if not file.startswith("papers/")]  # for the seeds, which are in the deps
        values = {v for v in record["values"] if not any(v == k or v.startswith(f"{k}.") for k in keys(stage))}
        values -= {value.partition(".")[0] for value in record["values"] if "." in value}
        if "seed" in stage.get("params", []):
            values.discard("seed")
        problems += [
            f"{name}: {what} {path}"
            for what, paths in (("loads", code), ("reads", read), ("asks", values))
            for path in sorted(paths)
        ]
        problems += [f"{name}: does not write {out}" for out in outs(stage) if not (toy_project / out).exists()]
    assert not problems, "\n".join(problems)


def empty(file: Path) -> bool:
    """Whether a package's file says nothing but its docstring, so that an edit changes no result."""
    lines = file.read_text(encoding="utf-8").strip().splitlines()
    return file.name == "__init__.py" and (
        not lines or (lines[0].startswith('"""') and lines[-1].endswith('"""') and len(lines) < 4)
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same with a copy of the code, as a DVC repository in which every stage is fresh (its outputs made up)."""
    root = tmp_path_factory.mktemp("repository")
    copy_project(root)
    make_toy(root)
    (root / "src").unlink()
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in (".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, root)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run([*DVC, "init", "-q"], cwd=root, check=True)
    for stage in stages(root).values():
        for out in outs(stage):
            path = root / out
            path.parent.mkdir(parents=True, exist_ok=True)
            if out.startswith("data/shards/"):
                path.mkdir()
                path /= "manifest.parquet"
            path.write_text(out)
    subprocess.run([*DVC, "commit", "-q", "-f"], cwd=root, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert stale(root) == set()
        yield root
        assert stale(root) == set()


@contextmanager
def edited(file: Path, text: str) -> Iterator[None]:
    """The file with other text, as long as the block lasts."""
    before = file.read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    yield
    file.write_text(before, encoding="utf-8")


def stale(root: Path) -> set[str]:
    """Stages that are not fresh by their own dependencies, says DVC."""
    done = subprocess.run([*DVC, "status", "--json"], cwd=root, check=True, capture_output=True, text=True)
    return {name.removeprefix("papers/toy/dvc.yaml:") for name in json.loads(done.stdout)}


TRAINED = {f"train-catnet-{variant}-s0" for variant in ("dense", "full", "stem")}
CONSTANT = {f"{kind}-constant-{shape}" for kind in ("train", "evaluate") for shape in ("all", "centre")}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # the report lists the assumptions of all code, so that it follows every file
        ("src/unforge/methods/constant.py", CONSTANT | {"report"}),
        ("src/unforge/datasets/columbia.py", {"ingest-columbia", "report"}),
        ("src/unforge/perturbations/blur.py", {"perturb-columbia-blur", "figure_2", "report"}),
        (
            "src/unforge/train/loop.py",
            TRAINED | {"train-constant-all", "train-constant-centre", "backbone-autoencoder", "report"},
        ),
        ("papers/toy/figure_2.yaml", {"figure_2", "claims", "audit", "report"}),
    ],
)
def test_an_edit_stales_what_it_concerns(repository: Path, path: str, expected: set[str]) -> None:
    named = {name for name, stage in stages(repository).items() if covered(path, stage["deps"])}
    assert {name.removeprefix("papers/toy/dvc.yaml:") for name in named} == expected
    file = repository / path
    with edited(file, f"{file.read_text(encoding='utf-8')}\n# edited\n"):
        assert stale(repository) == expected


@pytest.mark.parametrize(
    ("profile", "kind", "key", "name", "expected"),
    [
        ("smoke", "train", "sparsevit", "steps", set[str]()),
        ("small", "train", "sparsevit", "steps", TRAINED),
        ("small", "ingest", "columbia", "images", {"ingest-columbia"}),
        ("small", "evaluate", "constant", "samples", {"evaluate-constant-all", "evaluate-constant-centre"}),
    ],
)
def test_a_scale_value_stales_the_stages_of_its_key(
    repository: Path, profile: str, kind: str, key: str, name: str, expected: set[str]
) -> None:
    file = repository / "profiles" / f"{profile}.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    values[kind][key][name] += 1
    with edited(file, yaml.safe_dump(values)):
        assert stale(repository) == expected


def test_a_dataset_that_becomes_real_stales_its_own_ingest(repository: Path) -> None:
    assert catalogue.check() == []
    file = repository / "dvc.yaml"
    with edited(repository / "data/raw/columbia/SOURCE.json", '{"source": "real", "module": "columbia"}'):
        assert stale(repository) == {"ingest-columbia"}
        assert catalogue.check() == [Path("dvc.yaml")]
        with edited(file, file.read_text(encoding="utf-8")):
            catalogue.write()
            # the real set is made from its own files
            deps = stages(repository)["ingest-columbia"]["deps"]
            assert not [d for d in deps if d.startswith(("data/shards", "models"))]
            assert "src/unforge/forgeries/splice.py" not in deps


def test_the_files_are_what_the_papers_ask_for(project: Path) -> None:
    assert unforge(project, "catalogue").returncode == 0
    assert unforge(project, "catalogue", "--check").returncode == 0
    committed = {path: path.read_bytes() for path in sorted(project.rglob("dvc.yaml"))}
    assert len(committed) == 1 + len(specs.papers())
    for path in committed:
        path.unlink()
    assert unforge(project, "catalogue").returncode == 0
    assert {path: path.read_bytes() for path in sorted(project.rglob("dvc.yaml"))} == committed
    found = stages(project)
    for file in committed:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))["stages"]
        assert list(entries) == sorted(entries)
    for name, stage in found.items():
        assert stage["deps"], name
        assert stage["deps"] == sorted(set(stage["deps"])), name
        assert [out for out in outs(stage) if Path(out).is_absolute() or ".." in out] == []
    made = [out for stage in found.values() for out in outs(stage)]
    assert len(made) == len(set(made))
    # a dependency is there in git, or some stage makes it (or the folder it lies in)
    assert {
        d for s in found.values() for d in s["deps"] if not covered(d, made) and not (project / d).exists()
    } == set()
    for paper in specs.papers():
        for entry in [*specs.tables(paper), *specs.figures(paper)]:
            assert f"reports/small/tables/{paper}.{entry}.parquet" in outs(found[f"papers/{paper}/dvc.yaml:{entry}"])
    assert len([name for name in found if name.endswith("report")]) == 1

    # an edit by hand is found and undone
    (project / "dvc.yaml").write_text(f"{(project / 'dvc.yaml').read_text()}\n# by hand\n")
    done = unforge(project, "catalogue", "--check")
    assert (done.returncode, "dvc.yaml is stale: run `unforge catalogue`" in done.stderr) == (1, True)
    assert unforge(project, "catalogue").stdout.splitlines() == ["wrote dvc.yaml"]
    assert unforge(project, "catalogue").stdout == ""


def test_dvc_takes_the_files(project: Path) -> None:
    assert unforge(project, "catalogue").returncode == 0
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    subprocess.run([*DVC, "init", "-q"], cwd=project, check=True)
    done = subprocess.run(
        [*DVC, "stage", "list", "--all", "--name-only"], cwd=project, check=True, capture_output=True, text=True
    )
    assert sorted(done.stdout.split()) == sorted(stages(project))
    dag = subprocess.run([*DVC, "dag", "--mermaid", "report"], cwd=project, check=True, capture_output=True, text=True)
    for paper in specs.papers():
        for table in specs.tables(paper):
            assert f"papers/{paper}/dvc.yaml:{table}" in dag.stdout  # `dvc repro` of the report builds every table


def test_a_paper_needs_no_claims(toy_project: Path) -> None:
    (toy_project / "papers/toy/claims.yaml").unlink()
    assert unforge(toy_project, "catalogue").returncode == 0
    assert [d for s in stages(toy_project).values() for d in s["deps"] if d.endswith("claims.yaml")] == []
