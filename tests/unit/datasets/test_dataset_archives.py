"""Archives built by hand to do harm: nothing leaves the target directory, the harmless rest is unpacked."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unforge import s3
from unforge.datasets import archives

HOSTILE = {
    "../escape.txt": "traversal",
    "a/../../escape.txt": "traversal",
    "/etc/escape.txt": "absolute",
    "C:\\escape.txt": "absolute",
    "..\\escape.txt": "traversal",
    "a/b\n.txt": "control",
    "x" * 300: "too long",
    "inner.zip": "archive within",
    "inner.tar.gz": "archive within",
}


def unpacked(target: Path) -> dict[str, bytes]:
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def make_zip(path: Path, members: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = options.get(name, 0) << 16
            file.writestr(info, data)
    return path


def make_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for info, data in members:
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "deep" / "target"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_hostile_names_are_refused_one_by_one(tmp_path, target, kind):
    members = dict.fromkeys(HOSTILE, b"evil") | {"good/a.txt": b"good", "b.txt": b"too"}
    path = tmp_path / f"set.{kind}"
    if kind == "zip":
        make_zip(path, members)
    else:
        make_tar(
            path, [(tarfile.TarInfo(name), data) for name, data in members.items()], "w:gz" if "gz" in kind else "w"
        )
    before = set(tmp_path.rglob("*"))
    rows = archives.unpack(path, target)
    assert unpacked(target) == {"good/a.txt": b"good", "b.txt": b"too"}
    assert len(rows) == len(HOSTILE)
    reasons = {row["source_image"]: row["reason"] for row in rows}
    for name, word in HOSTILE.items():
        assert word in reasons[name], name
    assert all(row["status"] == "rejected" for row in rows)
    assert {entry for entry in tmp_path.rglob("*") if target not in entry.parents} == before


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "..", ".", "", "\\", "/", "C:", "b.txt", "é", "\0"]), max_size=6).map("/".join))
def test_safe_names_stay_below_any_root(name):
    try:
        path = archives.safe_name(name)
    except ValueError:
        return
    root = "/some/root"
    assert os.path.normpath(os.path.join(root, path)).startswith(root + "/")


def test_links_and_devices_in_a_tar(tmp_path, target):
    kinds = {"sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE, "dev": tarfile.CHRTYPE}
    members = []
    for name, kind in kinds.items():
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "../../secret"
        members.append((info, b""))
    through = tarfile.TarInfo("sym/inside.txt")
    rows = archives.unpack(make_tar(tmp_path / "s.tar", [*members, (through, b"x")]), target)
    assert {row["source_image"]: row["reason"] for row in rows} == {
        "sym": "link",
        "hard": "link",
        "fifo": "not a regular file",
        "dev": "not a regular file",
    }
    assert unpacked(target) == {"sym/inside.txt": b"x"}
    assert not (target / "sym").is_symlink()


def test_links_in_a_zip(tmp_path, target):
    path = make_zip(tmp_path / "s.zip", {"link": b"../../secret", "a": b"1"}, link=stat.S_IFLNK | 0o777)
    assert [(row["source_image"], row["reason"]) for row in archives.unpack(path, target)] == [("link", "link")]
    assert unpacked(target) == {"a": b"1"}


def test_bombs(tmp_path, target):
    limits = archives.Limits(total=3000, member=2000, ratio=100, ratio_floor=1000)
    path = make_zip(
        tmp_path / "s.zip",
        {
            "big": os.urandom(2500),
            "dense": bytes(1900),
            "a": os.urandom(1500),
            "b": os.urandom(1400),
            "c": os.urandom(200),
        },
    )
    reasons = {row["source_image"]: row["reason"] for row in archives.unpack(path, target, limits)}
    assert set(reasons) == {"big", "dense", "c"}
    assert "more than 2000" in reasons["big"]
    assert "unpacks" in reasons["dense"]
    assert "altogether" in reasons["c"]
    assert set(unpacked(target)) == {"a", "b"}


def test_many_small_bombs_and_packed_tars(tmp_path, target):
    limits = archives.Limits(ratio=20, ratio_floor=10_000)
    path = make_zip(tmp_path / "s.zip", {f"{number}": bytes(9_000) for number in range(50)})
    rows = archives.unpack(path, target, limits)
    written = unpacked(target)
    assert len(rows) + len(written) == 50
    assert sum(map(len, written.values())) <= 20 * path.stat().st_size
    packed = make_tar(tmp_path / "s.tar.gz", [(tarfile.TarInfo(n), bytes(2_000_000)) for n in "xyz"], "w:gz")
    (row,) = archives.unpack(packed, target, limits)
    assert "nothing from x on is read" in row["reason"]
    assert unpacked(target) == written


def test_a_full_disk_is_no_bad_file(tmp_path, target, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives._Unpacking, "_copy", full)
    with pytest.raises(OSError, match="No space"):
        archives.unpack(make_zip(tmp_path / "s.zip", {"a": b"1"}), target)


def test_a_zip_that_lies_about_its_sizes(tmp_path, target):
    path = make_zip(tmp_path / "s.zip", {"a.txt": bytes(5000), "b.txt": b"fine"})
    data = path.read_bytes().replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(data)
    rows = archives.unpack(path, target)
    assert [row["source_image"] for row in rows] == ["a.txt"]
    assert unpacked(target) == {"b.txt": b"fine"}


def test_damaged_members_and_repeated_names(tmp_path, target):
    content = os.urandom(4000)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as file:
        file.writestr("damaged", content)
        file.writestr("twice", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("twice", b"second")
        file.writestr("twice/below", b"a file is there")
    data = bytearray((tmp_path / "s.zip").read_bytes())
    place = data.find(content)
    data[place + 100] ^= 255
    (tmp_path / "s.zip").write_bytes(data)
    rows = archives.unpack(tmp_path / "s.zip", target)
    assert [row["source_image"] for row in rows] == ["damaged", "twice", "twice/below"]
    assert unpacked(target) == {"twice": b"first"}


def test_a_truncated_tar_keeps_what_came_before(tmp_path, target):
    members = [(tarfile.TarInfo(f"{number}.bin"), os.urandom(50_000)) for number in range(5)]
    path = make_tar(tmp_path / "s.tar.gz", members, "w:gz")
    path.write_bytes(path.read_bytes()[:120_000])
    rows = archives.unpack(path, target)
    assert rows
    assert all("damaged" in row["reason"] or "truncated" in row["reason"] for row in rows)
    assert set(unpacked(target)) == {"0.bin", "1.bin"}


def test_sources_that_are_none(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"no archive")
    for source, words in ((tmp_path / "gone", "is not there"), (tmp_path / "x.zip", "neither a zip nor a tar")):
        with pytest.raises(ValueError, match=words), archives.opened(source):
            pass


class Store:
    """The three calls of an S3 client that `fetch` makes."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    def get_paginator(self, _: str) -> Store:
        return self

    def paginate(self, Bucket: str, Prefix: str) -> list[dict]:
        assert Bucket == "bucket"
        names = sorted(name for name in self.objects if name.startswith(Prefix))
        return [{"Contents": [{"Key": name, "Size": len(self.objects[name])}]} for name in names] or [{}]

    def get_object(self, Bucket: str, Key: str) -> dict:
        return {"Body": io.BytesIO(self.objects[Key])}


def test_s3_prefixes_and_archives(tmp_path, target, monkeypatch):
    archive = make_zip(tmp_path / "s.zip", {"in.txt": b"zipped"}).read_bytes()
    store = Store({"set/a/1.txt": b"1", "set/": b"", "set/../out": b"evil", "settle/x": b"2", "set.zip": archive})
    monkeypatch.setattr(s3, "connect", lambda: store)
    with archives.opened("s3://bucket/set", scratch=tmp_path) as (folder, rows):
        assert unpacked(folder) == {"a/1.txt": b"1"}
        assert [row["source_image"] for row in rows] == ["../out"]
    assert not folder.exists()
    with archives.opened("s3://bucket/set.zip", scratch=tmp_path) as (folder, rows):
        assert unpacked(folder) == {"in.txt": b"zipped"}
    with pytest.raises(ValueError, match="nothing at s3://bucket/none"):
        archives.fetch("s3://bucket/none", target)
    with pytest.raises(ValueError, match="not an address"):
        archives.fetch("s3://", target)
