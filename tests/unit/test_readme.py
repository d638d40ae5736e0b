"""README.md: its status block is generated, its commands work, and what it names is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from flows import smoke
from unforge import catalogue, markdown, profiles, readme, specs, tables

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = list(dict.fromkeys(line for kind, text in FENCES if kind == "sh" for line in text.splitlines()))
SLOW = {"unforge methods --counts"}
RUN = "sparsevit/catnet/srm_lff/s0"


# The status block


def test_block_counts_the_cells_of_the_yaml(project: Path) -> None:
    """Without built tables a row of a method is not run, and one without is cited."""
    lines = readme.block(profiles.load("small")).splitlines()
    assert lines[0] == "| paper | table | cells | " + " | ".join(tables.STATUSES) + " |"
    for paper in specs.papers():
        for name, table in specs.tables(paper).items():
            own = sum(row.method is not None for row in table.rows) * len(table.columns)
            cited = len(table.rows) * len(table.columns) - own
            assert f"| {paper} | {name} | {own + cited} | 0 | 0 | 0 | {cited} | {own} | 0 |" in lines
    assert not [line for line in lines if line.startswith("Claims")]


def test_block_counts_the_verdicts(project: Path) -> None:
    verdicts = ["holds", "undecided", "fails", "undecided", "undecided"]
    path = project / "reports" / "small" / "claims.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"paper": ["sparsevit"] * 4 + ["other"], "verdict": verdicts}), path)
    assert readme.block(profiles.load("small")).splitlines()[-2:] == [
        "Claims of other: holds 0, fails 0, undecided 1; 1 in all.",
        "Claims of sparsevit: holds 1, fails 1, undecided 2; 4 in all.",
    ]


def test_update_changes_what_is_between_the_markers_only() -> None:
    text = "a\n<!-- status -->\nold \\1\n<!-- /status -->\nb\n"
    new = readme.update(text, "new \\2\n")
    assert new == "a\n<!-- status -->\n\nnew \\2\n\n<!-- /status -->\nb\n"
    assert readme.update(new, "new \\2") == new


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        "<!-- status --> open",
        "<!-- /status --> wrong order <!-- status -->",
        "<!-- status --><!-- status --><!-- /status -->",
    ],
)
def test_update_refuses_a_page_without_its_markers(text: str) -> None:
    with pytest.raises(ValueError, match="needs the line <!-- status --> once"):
        readme.update(text, "new")


def test_write_makes_the_page_fresh_whatever_profile_is_active(project: Path) -> None:
    readme.write()
    assert not readme.stale()
    assert not readme.write()
    (project / "params.yaml").write_text("profile: paper\nseed: 0\n", encoding="utf-8")
    assert not readme.stale()
    text = (project / "README.md").read_text(encoding="utf-8")
    (project / "README.md").write_text(text.replace("| sparsevit | table_6 | ", "| sparsevit | table_6 | 9"))
    assert readme.stale()
    assert readme.write()
    assert (project / "README.md").read_text(encoding="utf-8") == text


# The commands


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the work tree with what the commands are given: a photograph, two sets and a run."""
    folder = tmp_path_factory.mktemp("readme")
    root = folder / "clone"
    smoke.clone(ROOT, root, "small")
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 80), np.uint8)
    mask[10:30, 10:50] = 255
    for name in (
        "CASIA1/Tp/Sp/Sp_D_NNN_A_ani0099_ani0100_0288.jpg",
        "CASIA1/Au/Au_ani_0001.jpg",
        "CASIA1/CASIA 1.0 groundtruth/Sp/Sp_D_NNN_A_ani0099_ani0100_0288_gt.png",
        "mine/images/desk.jpg",
        "mine/masks/desk.png",
        "mine/authentic/lamp.jpg",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = mask if path.suffix == ".png" else rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(root / "photo.jpg")
    train = (
        "from pathlib import Path\nfrom unforge import methods\n"
        f"folder = Path('models/small/runs/{RUN}')\nfolder.mkdir(parents=True)\n"
        "config = methods.config('sparsevit', 'srm_lff', 'small')\n"
        "methods.save(methods.build('sparsevit', config), 'sparsevit', 'srm_lff', config, folder)\n"
    )
    done = run(root, f"{shlex.quote(sys.executable)} -c {shlex.quote(train)}")
    assert done.returncode == 0, done.stderr
    return root


def run(root: Path, line: str) -> subprocess.CompletedProcess[str]:
    """A command line as a reader of the page types it, in an active environment at `root`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", line], cwd=root, env=environment, capture_output=True, text=True)


def stage_names(root: Path) -> set[str]:
    """`papers/<paper>/dvc.yaml:<stage>` of every stage a paper has."""
    return {
        f"{path}:{stage}"
        for path, text in catalogue.files(profiles.load("small")).items()
        for stage in yaml.safe_load(text)["stages"]
    }


@pytest.mark.parametrize("line", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in COMMANDS])
def test_command_works(clone: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Quick ones are run, in the order of the page; of long ones the parts they name are looked up."""
    words = shlex.split(line)
    match words:
        case ["unforge" | "git", *_]:
            done = run(clone, line.replace("/path/to", str(clone.parent)))
            assert done.returncode in ({0, 1} if words[1] == "diff" else {0}), done.stdout + done.stderr
        case ["make", target, *_]:
            done = run(clone, f"make -n {line.removeprefix('make ')}")
            assert done.returncode == 0, done.stderr
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        case ["dvc", "repro" | "commit", *options, stage]:
            assert options in ([], ["--force"])
            monkeypatch.chdir(ROOT)
            assert stage in stage_names(ROOT)
        case ["torchrun", "--nproc-per-node", _, script, name, "--profile", profile]:
            monkeypatch.chdir(ROOT)
            assert (ROOT / script).is_file()
            paper, _, rest = name.partition("/")
            assert f"papers/{paper}/dvc.yaml:train-{rest.replace('/', '-')}" in stage_names(ROOT)
            assert (ROOT / "profiles" / f"{profile}.yaml").is_file()
        case ["python", "-m", module, target, *options]:
            helped = run(clone, f"python -m {module} --help")
            assert helped.returncode == 0
            assert all(option in helped.stdout for option in options if option.startswith("--"))
            paper, _, table = target.partition(".")
            monkeypatch.chdir(ROOT)
            assert f"papers/{paper}/dvc.yaml:{table}" in stage_names(ROOT)
        case ["source", ".venv/bin/activate"]:
            assert "-m venv .venv" in (ROOT / "Makefile").read_text(encoding="utf-8")
        case _:
            pytest.fail(f"README.md has a command that nothing checks: {line}")


def test_a_set_of_your_own_is_a_test_set(clone: Path) -> None:
    """Once it was added, a table may name it, without code."""
    path = clone / "papers" / "sparsevit" / "table_6.yaml"
    text = path.read_text(encoding="utf-8")
    assert run(clone, f"unforge data add mine {clone.parent}/mine").returncode == 0
    path.write_text(text.replace("testset: coverage,", "testset: mine,"), encoding="utf-8")
    try:
        written = run(clone, "unforge catalogue")
        assert written.returncode == 0, written.stderr
        stage = yaml.safe_load((clone / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["ingest-mine"]
        assert {"data/raw/mine/SOURCE.json", "src/unforge/datasets/generic.py"} <= set(stage["deps"])
    finally:
        path.write_text(text, encoding="utf-8")


def test_inspect_wrote_what_the_page_says(clone: Path) -> None:
    line = next(line for line in COMMANDS if line.startswith("unforge inspect"))
    done = run(clone, line)
    assert "This is no evidence" in done.stdout.splitlines()[0]
    assert {path.name for path in (clone / "inspected").iterdir()} == {
        "photo.overlay.png",
        "photo.mask.png",
        "photo.json",
    }


def test_catalogue_checks_and_writes_the_block(clone: Path) -> None:
    path = clone / "README.md"
    assert run(clone, "unforge catalogue").returncode == 0
    fresh = path.read_text(encoding="utf-8")
    assert run(clone, "unforge catalogue --check").returncode == 0
    path.write_text(readme.update(fresh, "old"), encoding="utf-8")
    checked = run(clone, "unforge catalogue --check")
    assert checked.returncode == 1
    assert checked.stderr == "README.md is stale: run `unforge catalogue`\n"
    assert run(clone, "unforge catalogue").stdout == "wrote README.md\n"
    assert path.read_text(encoding="utf-8") == fresh


# What the page names


def test_paths_of_the_tree_exist() -> None:
    tree = next(text for kind, text in FENCES if not kind and "cli.py" in text)
    names: list[str] = []
    for line in tree.splitlines():
        listed = re.findall(r"(?:^|(?<= ))[\w/<>]+(?:/|\.py|\.yaml)(?= )", line)
        names += [f"src/unforge/{name}" if line.startswith("  ") else name for name in listed]
    assert len(names) > 25
    artefacts = {"data/", "models/", "reports/"}
    missing = [n for n in names if "<" not in n and n not in artefacts and not (ROOT / n).exists()]
    assert missing == []


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        file, _, anchor = target.partition("#")
        text = (ROOT / file).read_text(encoding="utf-8") if file else PAGE
        titles = {
            re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in re.findall(r"^#+ (.*)", text, re.MULTILINE)
        }
        assert not anchor or anchor in titles, target


def test_statuses_and_marks_are_those_of_the_tables() -> None:
    section = PAGE.split("## How to read a cell")[1].split("## ")[0]
    for status in tables.STATUSES:
        row = next(
            line for line in section.splitlines() if line.startswith("| `") and f"`{status}`" in line.split("|")[1]
        )
        assert status == "cited" or markdown.MARKS[status] in row.split("|")[2]


def test_messages_are_those_of_the_code() -> None:
    """Each message in the last table is in the source, up to what is filled in (…)."""
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("src", "stages", "flows")
        for path in (ROOT / folder).rglob("*.py")
    )
    section = PAGE.split("## When something goes wrong")[1].split("## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 12
    for message in messages:
        for part in message.split("…"):
            assert part.strip() in code, message


def test_make_targets_and_benchmarks_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make ([a-z-]+)", PAGE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for script in set(re.findall(r"`python (benchmarks/\w+\.py)", PAGE)):
        assert (ROOT / script).is_file(), script
