"""The `unforge` command: what it says, where it says it, and with which status."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from unforge import markdown, shards, specs
from unforge.cli import main

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch",
    "transformers",
    "prefect",
    "dvc",
    "pyarrow",
    "numpy",
    "PIL",
    "cv2",
    "scipy",
    "matplotlib",
    "yaml",
    "pydantic",
    "grimp",
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def failed(*arguments: str) -> str:
    """The one message of a command that was given bad input: on stderr, after nothing on stdout."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    return result.stderr


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_nothing_heavy_is_imported_for_the_help() -> None:
    code = "import sys, unforge.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_the_help_shows_examples_that_exist() -> None:
    text = run("--help").output
    examples = [line.split() for line in text.splitlines() if line.strip().startswith("unforge ")]
    assert len(examples) >= 5
    known = set(commands())
    for words in examples:
        assert (words[1],) in known
        assert words[1] != "data" or (words[1], words[2]) in known


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_command_and_option_is_described(command: tuple[str, ...]) -> None:
    result = run(*command, "-h")
    assert result.exit_code == 0
    here: click.Command = main
    for name in command:
        assert isinstance(here, click.Group)
        here = here.commands[name]
    assert here.help
    assert len(here.help.split()) >= 4
    options = [p for p in here.params if isinstance(p, click.Option) and not p.is_eager]
    assert [o.name for o in options if not o.help and o.name not in ("kind", "output", "profile")] == []


def test_bad_input_names_what_there_is(project: Path) -> None:
    for command in ("tables", "audit"):
        assert "no paper 'spasevit': there are aap, iar_provenance, qtfp, sparsevit" in failed(
            command, "--paper", "spasevit"
        )
    assert "no profile 'smal': there are paper, small, smoke" in failed("tables", "--profile", "smal")
    assert "no profile 'smal'" in failed("cells", "--profile", "smal")
    message = failed("inspect", "photo.jpg", "--run", "sparsevit/catnet/full/s0")
    assert "models/small/runs/sparsevit/catnet/full/s0 is not there" in message
    assert "dvc repro papers/sparsevit/dvc.yaml:train-catnet-full-s0" in message
    subprocess.run(["git", "init", "-q"], check=True)
    assert "git knows no revision 'nope'" in failed("diff", "nope")
    (project / "file").write_text("")
    assert "file/cells.csv" in failed("cells", "--output", "file/cells.csv")
    assert run("cells", "--format", "xlsx").exit_code == 2
    assert run("nothing").exit_code == 2


def test_outside_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "images" / "a.png")
    monkeypatch.chdir(tmp_path)
    for command in (
        ["tables"],
        ["cells"],
        ["data", "list"],
        ["data", "add", "mine", "."],
        ["audit"],
        ["catalogue"],
        ["diff", "HEAD"],
    ):
        assert "no unforge project at or above" in failed(*command)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_cells_in_every_format(project: Path) -> None:
    printed = sum(
        value is not None
        for paper in specs.papers()
        for t in specs.tables(paper).values()
        for row in t.rows
        for value in row.printed
    )
    text = run("cells").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert sum(row["printed"] != "" for row in rows) == printed > 200
    assert {
        "paper",
        "table",
        "row",
        "column",
        "metric",
        "printed",
        "measured",
        "ci_low",
        "ci_high",
        "n",
        "testset",
        "data",
        "scale",
        "status",
    } <= set(rows[0])
    result = run("cells", "--format", "parquet", "--output", "cells.parquet")
    assert result.stdout == ""
    table = pq.read_table("cells.parquet")
    listed = json.loads(run("cells", "--format", "json").stdout)
    assert table.num_rows == len(rows) == len(listed)
    assert (
        [row["printed"] or "" for row in listed]
        == [row["printed"] for row in rows]
        == [p or "" for p in table["printed"].to_pylist()]
    )
    assert set(table["status"].to_pylist()) <= {"cited", "not_run"}  # nothing was measured here
    assert table["measured"].null_count == table.num_rows


def test_tables_say_the_same_from_any_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(run("tables", "--json").stdout)
    expected = {(paper, table) for paper in specs.papers() for table in specs.tables(paper)}
    assert {(row["paper"], row["table"]) for row in rows} == expected
    text = run("tables").stdout
    listed = run("data", "list").stdout
    monkeypatch.chdir(project / "papers")
    assert run("tables").stdout == text
    assert run("data", "list").stdout == listed
    some = [row for row in rows if row["paper"] == "sparsevit"]
    assert json.loads(run("tables", "--paper", "sparsevit", "--json").stdout) == some


def test_data_list(project: Path) -> None:
    rows = {row["id"]: row for row in json.loads(run("data", "list", "--json").stdout)}
    assert rows["casia1"]["status"] == "stand_in"
    assert rows["casia1"]["redistribute"] is False
    assert rows["catnet"]["status"] == "protocol"
    text = run("data", "list").stdout.splitlines()
    assert [line.split()[0] for line in text[2:]] == list(rows)


def test_methods(project: Path) -> None:
    rows = json.loads(run("methods", "--json").stdout)
    assert {"method": "constant", "variant": "centre"} in rows
    assert {"method": "sparsevit", "variant": "srm_lff"} in rows
    assert len(run("methods").stdout.splitlines()) == len(rows) + 2


def test_audit(project: Path) -> None:
    rows = json.loads(run("audit", "--json").stdout)
    result = run("audit")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == (len(rows) + 2 if rows else 1)


def own_images(folder: Path) -> Path:
    for name, size in (("images/a.png", (40, 30)), ("images/b.png", (40, 30)), ("masks/a.png", (40, 30))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        if "masks" in name:
            pixels[:] = 0
            pixels[5:20, 5:20] = 255
        Image.fromarray(pixels).save(path)
    (folder / "images" / "b.png").write_bytes((folder / "images" / "b.png").read_bytes() + b"b")
    return folder


def test_own_images_are_checked_and_added(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = own_images(tmp_path_factory.mktemp("own"))
    result = run("data", "check", "mine", str(source), "--rows", "rows.parquet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert pq.read_table("rows.parquet")["status"].to_pylist() == ["ok", "ok"]
    assert not (project / "data/raw/mine").exists()

    (source / "images" / "c.jpg").write_bytes(b"\xff\xd8\xff not an image")
    result = run("data", "check", "mine", str(source), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["rejected"] == 1

    monkeypatch.chdir(project / "papers")
    result = run("data", "add", "mine", str(source))
    assert result.exit_code == 0, result.output
    assert "rejected: images/c.jpg: " in result.stdout
    assert json.loads((project / "data/raw/mine/SOURCE.json").read_text())["source"] == "real"
    assert not (project / "papers" / "data").exists()
    assert {row["id"]: row["status"] for row in json.loads(run("data", "list", "--json").stdout)}["mine"] == "real"


def test_a_wrong_layout_is_explained(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = own_images(tmp_path_factory.mktemp("own"))
    for command in ("add", "check"):
        message = failed("data", command, "columbia", str(source))
        assert "no image of columbia found" in message
        assert "expected: 4cam_splc" in message
        assert "there: images (2 files), masks (1 files)" in message
    assert "is not a dataset id" in failed("data", "add", "Not-An-Id", str(source))
    assert "nowhere" in failed("data", "check", "columbia", "nowhere")
    assert json.loads((project / "data/raw/columbia/SOURCE.json").read_text()) == {"source": "stand_in"}


def test_a_hostile_archive_is_read_with_care(project: Path, tmp_path: Path) -> None:
    picture = shards.encode_png(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    with zipfile.ZipFile("hostile.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/good.png", picture)
        archive.writestr("../../escaped.png", picture)
        archive.writestr("/absolute.png", picture)
        archive.writestr("images/bad.png", picture[:200])
        link = zipfile.ZipInfo("images/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    result = run("data", "check", "mine", "hostile.zip", "--rows", "rows.parquet")
    assert result.exit_code == 1
    rows = {row["source_image"]: (row["status"], row["reason"]) for row in pq.read_table("rows.parquet").to_pylist()}
    assert rows.pop("images/good.png") == ("ok", "")
    assert len(rows) == 4
    assert all(status == "rejected" and reason for status, reason in rows.values())
    assert not list(tmp_path.parent.rglob("escaped.png"))
    assert sorted(path.name for path in (project / "data" / "raw").iterdir() if path.name.startswith(".")) == []


def test_diff_between_revisions(project: Path) -> None:
    from unforge import profiles, tables

    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init", "-q"], check=True)
    folder = project / "reports/small/tables"
    table = tables.build("sparsevit", "table_2", profiles.load("small"))
    markdown.write(table, folder / "sparsevit.table_2")
    subprocess.run([*git, "add", "-f", "reports"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    result = run("diff", "HEAD")
    assert (result.exit_code, result.stdout) == (0, "no cell moved by more than 0.0\n")
    rows = table.to_pylist()
    rows[0]["measured"], rows[0]["status"] = 0.5, "not_comparable"
    markdown.write(table.from_pylist(rows, schema=table.schema), folder / "sparsevit.table_2")
    result = run("diff", "HEAD", "--json")
    assert result.exit_code == 1
    moved = json.loads(result.stdout)
    assert [(row["row"], row["column"]) for row in moved] == [(rows[0]["row"], rows[0]["column"])]
    assert run("diff", "HEAD", "HEAD").exit_code == 0


def test_catalogue(project: Path) -> None:
    assert run("catalogue").exit_code == 0
    assert run("catalogue", "--check").exit_code == 0
    (project / "dvc.yaml").write_text("stages: {}\n")
    result = run("catalogue", "--check")
    assert (result.exit_code, result.stderr) == (1, "dvc.yaml is stale: run `unforge catalogue`\n")
