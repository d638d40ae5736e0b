"""`unforge data add|check|list` on the functions behind them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.unit.datasets.dataset_trees import picture
from unforge import shards
from unforge.datasets import add, ingest


@pytest.fixture
def own(tree) -> Path:
    return tree("images/a.png", "images/b.jpg", "masks/a.png", "notes/stray.png", contents={"images/c.png": b"broken"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "data" / "raw" / "casia1").mkdir(parents=True)
    (folder / "data" / "raw" / "casia1" / "SOURCE.json").write_text('{"source": "stand_in"}')
    return folder


def test_own_images_need_no_code(own, root, tmp_path):
    report = add.add("mine", own, root)
    assert (report.module, report.total("ok"), report.total("rejected"), report.unused) == (
        "generic",
        2,
        1,
        ("notes/stray.png",),
    )
    raw = root / "data" / "raw" / "mine"
    for path in ("images/a.png", "images/b.jpg", "masks/a.png"):
        assert (raw / "files" / path).read_bytes() == (own / path).read_bytes()
    source = json.loads((raw / "SOURCE.json").read_text())
    assert source["source"] == "real"
    assert source["module"] == "generic"
    assert source["counts"] == {"authentic": {"ok": 1, "rejected": 1}, "unknown": {"ok": 1}}
    assert str(tmp_path) not in (raw / "SOURCE.json").read_text()
    table = pq.read_table(raw / "rows.parquet")
    assert table.schema.equals(shards.ROWS)
    assert table["source_image"].to_pylist() == ["images/a.png", "images/b.jpg", "images/c.png"]
    samples = list(ingest.samples(raw, []))
    assert {sample.key for sample in samples} == {"a", "b"}


def test_the_manifest_hash_follows_the_files_only(own, root, tmp_path):
    add.add("mine", own, root)
    raw = root / "data" / "raw" / "mine" / "SOURCE.json"
    first = raw.read_bytes()
    packed = tmp_path / "own.zip"
    with zipfile.ZipFile(packed, "w") as file:
        for path in sorted(own.rglob("*"), reverse=True):
            file.write(path, path.relative_to(own).as_posix())
    add.add("mine", packed, root)
    assert raw.read_bytes() == first
    (own / "images" / "d.png").write_bytes((own / "masks" / "a.png").read_bytes())
    add.add("mine", own, root)
    assert json.loads(raw.read_text())["manifest_sha256"] != json.loads(first)["manifest_sha256"]


def test_check_copies_nothing(own, root, monkeypatch):
    monkeypatch.chdir(root)
    report = add.check("mine", own)
    assert report.total("ok") == 2
    assert not (root / "data" / "raw" / "mine").exists()
    assert "3 found = 2 ok + 0 flagged + 1 rejected" in report.text()
    assert "images/c.png" in report.text()


def test_refused_archive_members_are_rows(own, root, tmp_path):
    packed = tmp_path / "own.zip"
    with zipfile.ZipFile(packed, "w") as file:
        file.write(own / "images" / "a.png", "images/a.png")
        file.writestr("../../evil.png", b"x")
    report = add.add("mine", packed, root)
    assert [(row["source_image"], row["status"]) for row in report.table().to_pylist()] == [
        ("../../evil.png", "rejected"),
        ("images/a.png", "ok"),
    ]
    assert sorted(path.name for path in (root / "data" / "raw").iterdir()) == ["casia1", "mine"]


def test_wrong_layout_says_what_was_expected_and_what_is_there(own, root):
    with pytest.raises(ValueError, match=r"(?s)expected: Au/Au_\*.*there: images \(3 files\), masks \(1 files\)"):
        add.add("casia1", own, root)
    with pytest.raises(ValueError, match=r"did you mean .*casia1"):
        add.check("casia", own / "notes")
    assert json.loads((root / "data" / "raw" / "casia1" / "SOURCE.json").read_text()) == {"source": "stand_in"}


def test_nothing_usable_is_an_error_and_leaves_what_was_there(root, tree):
    bad = tree(contents={"Au/Au_ani_0001.jpg": b"broken"})
    with pytest.raises(ValueError, match="no usable image"):
        add.add("casia1", bad, root)
    assert json.loads((root / "data" / "raw" / "casia1" / "SOURCE.json").read_text()) == {"source": "stand_in"}


@pytest.mark.parametrize(
    ("name", "words"), [("catnet", "no files of its own"), ("photos", "pip install"), ("My set", "id")]
)
def test_ids_that_cannot_be_added(own, root, name, words):
    with pytest.raises(ValueError, match=words):
        add.add(name, own, root)


def test_a_set_is_not_added_from_where_it_goes(own, root):
    add.add("mine", own, root)
    with pytest.raises(ValueError, match="give the original"):
        add.add("mine", root / "data" / "raw" / "mine" / "files", root)
    assert (root / "data" / "raw" / "mine" / "files" / "images" / "a.png").is_file()


def test_counts_are_compared_with_the_published_ones(tree):
    report = add.check("casia1", tree("Au/Au_ani_0001.jpg"))
    assert "authentic: 1 images found, 800 published" in report.problems
    assert len(report.missing) == 799


def test_list_shows_the_state_of_each(own, root):
    add.add("mine", own, root)
    entries = {entry["id"]: entry for entry in add.list_(root)}
    states = {name: entries[name]["status"] for name in ("casia1", "coverage", "mine", "catnet", "photos")}
    assert states == {
        "casia1": "stand_in",
        "coverage": "absent",
        "mine": "real",
        "catnet": "protocol",
        "photos": "package",
    }
    assert entries["mine"]["counts"]["unknown"] == {"ok": 1}
    assert "generic" not in entries
    assert json.dumps(list(entries.values()))


def test_progress_counts_up_to_the_number_of_images(own):
    seen: list[tuple[int, int]] = []
    add.check("mine", own, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_copies_are_found_by_content_and_strays_are_named(tree):
    data = picture("same")
    root = tree(contents={"images/a.png": data, "images/b.png": data, "x/a.png": np.zeros((2, 2), np.uint8)})
    report = add.check("mine", root)
    assert [row["reason"] for row in report.rows] == ["", "duplicate: the same bytes as images/a.png"]
    assert report.unused == ("x/a.png",)
    assert hashlib.sha256((root / "images/a.png").read_bytes()).digest()
