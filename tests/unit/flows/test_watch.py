"""What an upload may hold: manifests, names, contents, and how files join a dataset. The store is not needed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from flows import walk
from flows.incoming import inbox, intake, landing, lookout, uploads
from unforge.datasets import layout

LIMITS = uploads.Limits()
HASH = "0" * 64


def manifest(**changes: object) -> bytes:
    value = {"schema": 1, "dataset": "columbia", "files": [{"path": "a/b.tif", "size": 3, "sha256": HASH}]}
    return json.dumps({**value, **changes}).encode()


def listing(*paths: str) -> bytes:
    return manifest(files=[{"path": path, "size": 3, "sha256": HASH} for path in paths])


def picture(format: str = "PNG", size: tuple[int, int] = (24, 16), seed: int = 0, **options: object) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format=format, **options)
    return stream.getvalue()


def mask() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.pad(np.full((6, 8), 255, np.uint8), 5)).save(stream, "PNG")
    return stream.getvalue()


def array(value: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=value.dtype.hasobject)
    return stream.getvalue()


def bomb() -> bytes:
    """A PNG of 60000 x 60000 black pixels: 10 GB in some kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (60000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def test_a_manifest_is_read() -> None:
    read = uploads.read_manifest(manifest(note="two of them", module="columbia"), "columbia")
    assert [(entry.path, entry.size) for entry in read.files] == [("a/b.tif", 3)]
    assert read.partial
    assert not uploads.read_manifest(manifest(partial=False), "columbia").partial


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (manifest(colour="red"), "colour"),
        (manifest(schema=2), "schema"),
        (manifest(schema=True), "schema"),
        (manifest(schema="1"), "schema"),
        (manifest(dataset="casia1"), "it lies in the folder of columbia"),
        (manifest(module="generic"), "is read by columbia"),
        (manifest(files=[]), "files"),
        (manifest(files={"a.png": 1}), "files"),
        (manifest(partial=1), "partial"),
        (manifest(note="x" * 3000), "note"),
        (manifest(files=[{"path": "a.png", "size": -1, "sha256": HASH}]), "size"),
        (manifest(files=[{"path": "a.png", "size": 1.0, "sha256": HASH}]), "size"),
        (manifest(files=[{"path": "a.png", "size": 1, "sha256": HASH + "\n"}]), "sha256"),
        (manifest(files=[{"path": "a.png", "size": 1, "sha256": HASH.replace("0", "A")}]), "sha256"),
        (manifest(files=[{"path": "a.png", "size": 1, "sha256": HASH, "url": "x"}]), "url"),
        (manifest(files=[{"path": "a.png", "size": 1}]), "sha256"),
        (listing("a.png", "a.png"), "listed twice"),
        (listing("Au/x.png", "au/y.png"), "differs only in case"),
        (listing("a.png", "a.png/b.png"), "a file and a folder"),
        (listing("a.png/b.png", "a.png"), "a file and a folder"),
        (listing("../../evil.png"), "path traversal"),
        (listing("/etc/passwd"), "absolute"),
        (listing("manifest.json"), "does not list itself"),
        (b"", "cannot be read"),
        (b"\xff\xfe{\x00}\x00", "cannot be read"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"schema": 1, "schema": 1}', "a key occurs twice"),
        (b'{"schema": NaN}', "NaN is no JSON"),
        (b'{"schema": 1' + b"0" * 10_000 + b"}", "cannot be read"),
        (b"[1, 2]", "valid dictionary"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_as_it_should_be_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        uploads.read_manifest(data, "columbia")
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "name",
    [
        "../a.png", "a/../b.png", "/a.png", "//a.png", "C:/a.png", "a//b.png", "./a.png", "a/./b.png", "a.png/", "",
        "a\0.png", "a\n.png", "a\x7f.png", "a\x85.png", "a\u202egnp.exe", "a\u200b.png", "a\u2028.png",
        "a\xa0b.png",
        "e\u0301.png", "\ud800.png", "a\\b.png", ".hidden/a.png", "a/.dvcignore", "Thumbs.db", " a.png",
        "a .png /b.png",
        "a.png.", "x" * 300 + ".png", "y/" * 70 + "a.png", "\u00e9" * 250 + ".png", "\ue000.png", "manifest.json",
    ],
)  # fmt: skip
def test_names_that_may_not_be(name: str) -> None:
    with pytest.raises(ValueError):
        uploads.check_name(name)


@pytest.mark.parametrize(
    "name", ["a.png", "4cam_splc/canong3 sub_01.tif", "Modified Tp/Tp/CM/Tp_S.jpg", "é/日本.png", "a/manifest.json"]
)
def test_names_that_may_be(name: str) -> None:
    uploads.check_name(name)


NAMES = st.text(st.characters(codec=None), max_size=30) | st.lists(
    st.sampled_from(["a", "A", "..", ".", "", "é", "e\u0301", "ß", "SS", "ﬁ", "fi", "x.png", "con\u200b", " "]),
    max_size=5,
).map("/".join)


@given(NAMES)
@settings(deadline=None, max_examples=300)
def test_a_name_that_is_accepted_lies_below_its_folder_and_is_seen_there(name: str) -> None:
    try:
        uploads.check_name(name)
    except ValueError:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        assert path.resolve().is_relative_to(Path(folder).resolve())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        assert layout.files(Path(folder)) == [name]


@given(st.lists(NAMES, max_size=8))
def test_names_without_a_clash_differ_in_more_than_case(names: list[str]) -> None:
    clashes = uploads.collisions(names)
    kept = [name for name in names if name not in clashes]
    assert len({name.casefold() for name in kept}) == len(kept)
    if names:
        assert names[0] not in clashes or names.count(names[0]) > 1
    # what clashes with something there does so too when it comes second
    assert set(uploads.collisions(names[1:], names[:1])) <= set(clashes) | {n for n in names[1:] if n == names[0]}


@given(NAMES, NAMES)
def test_keys_are_harmless_and_keep_names_apart(one: str, two: str) -> None:
    key = uploads.key(one)
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~%/")
    assert not {"", ".", ".."} & set(key.split("/"))
    assert (key == uploads.key(two)) == (one == two)
    assert len(uploads.key(one * 100)) <= 700


@given(st.text(st.characters(codec=None), max_size=300))
def test_hostile_text_is_shown_in_printable_ascii(text: str) -> None:
    assert uploads.shown(text).isascii()
    assert uploads.shown(text).isprintable()
    assert len(uploads.shown(text)) <= 205


GOOD = {
    "a.png": picture(), "a.jpg": picture("JPEG"), "a.tif": picture("TIFF"), "a.bmp": picture("BMP"),
    "a.webp": picture("WEBP"), "really_a_png.jpg": picture(),
    "a.npy": array(np.arange(6).reshape(2, 3)), "f.npy": array(np.asfortranarray(np.ones((3, 4), np.float16))),
    "b.npy": array(np.zeros(3, bool)), "a.safetensors": save({"x": np.ones((2, 2), np.float32)}),
}  # fmt: skip
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'
EXE = b"MZ\x90\0" + bytes(200)
HEADER = array(np.zeros(4))
BAD = {
    "svg.png": (SVG, "not a readable image"),
    "image.svg": (SVG, "neither an image"),
    "exe.jpg": (EXE, "not a readable image"),
    "gif.png": (picture("GIF"), "not a readable image"),
    "bomb.png": (bomb(), "bomb"),
    "cut.jpg": (picture("JPEG", (200, 200))[:3000], "cannot be decoded"),
    "list.csv": (b"image,mask\n", "neither an image"),
    "dvc.yaml": (b"stages: {evil: {cmd: touch owned}}", "neither an image"),
    "masks.npz": (b"PK", "neither an image"),
    "image.csv": (picture(), "neither an image"),
    "pickle.npy": (array(np.array([{}], dtype=object)), "bjects?"),
    "named.npy": (picture(), "not an npy file"),
    "array.png": (array(np.zeros(3)), "not a readable image"),
    "structured.npy": (array(np.zeros(3, [("a", "i4")])), "numbers"),
    "text.npy": (array(np.array(["abc"])), "numbers"),
    "complex.npy": (array(np.zeros(3, complex)), "numbers"),
    "cut.npy": (HEADER[:-1], "mmap|bytes"),
    "more.npy": (HEADER + b"!", "1 bytes more"),
    "nothing.npy": (array(np.zeros((0, 3))), "empty"),
    "huge.npy": (HEADER.replace(b"(4,)", b"(4" + b"0" * 15 + b",)")[: len(HEADER)], "npy|mmap|bytes|header|arse"),
    "code.npy": (HEADER.replace(b"'shape'", b"exit()#"), "header|cannot be read as npy"),
    "noise.safetensors": (bytes(range(200)), "cannot be read as safetensors"),
    "pickled.safetensors": (b"\x80\x04}q\0.", "cannot be read as safetensors"),
    "cut.safetensors": (save({"x": np.ones((2, 2), np.float32)})[:-1], "cannot be read as safetensors"),
    "none.safetensors": (b"\x08" + bytes(7) + b"{}      ", "no tensors"),
    "nothing.png": (b"", "not a readable image"),
}  # fmt: skip


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_contents_are_looked_at_and_not_names(tmp_path: Path) -> None:
    put(tmp_path, {**GOOD, **{name: data for name, (data, _) in BAD.items()}})
    with uploads.checker() as check:
        assert {name: check(tmp_path / name) for name in GOOD} == dict.fromkeys(GOOD, "")
        found = {name: check(tmp_path / name) for name in BAD}
    for name, (_, reason) in BAD.items():
        with pytest.raises(ValueError, match=reason):
            uploads.check_file(tmp_path / name)
        assert found[name], name
        with pytest.raises(ValueError) as caught:
            uploads.check_file(tmp_path / name)
        assert type(caught.value) is ValueError, "nothing of the decoder's own comes out"


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(sorted(GOOD)), st.binary(max_size=40), st.integers(0, 400))
@settings(deadline=None, max_examples=150)
def test_a_damaged_file_is_good_or_has_a_reason(name: str, noise: bytes, place: int) -> None:
    data = bytearray(GOOD[name])
    data[place : place + len(noise)] = noise
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        try:
            uploads.check_file(Path(folder) / name)
        except ValueError as error:
            reason = str(error)
        else:
            return
    assert reason


def children() -> list[int]:
    """Process ids of the decoders that this process started."""
    return [one.pid for one in psutil.Process().children() if any("uploads.py" in part for part in one.cmdline())]


def test_a_file_that_hangs_or_crashes_its_decoder_is_a_bad_file_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, {"good.png": GOOD["a.png"]})
    os.mkfifo(tmp_path / "hangs.npy")

    with uploads.checker(seconds=60) as check:
        assert check(tmp_path / "good.png") == ""
        (child,) = children()
        threading.Timer(0.5, lambda: os.kill(child, signal.SIGSEGV)).start()
        assert check(tmp_path / "hangs.npy") == "crashes its decoder"
        assert check(tmp_path / "good.png") == ""
    assert children() == []
    with uploads.checker(seconds=2) as check:
        assert "more than 2 s" in check(tmp_path / "hangs.npy")
        assert check(tmp_path / "good.png") == ""
    with uploads.checker(memory=2**30 // 2) as check:  # decoding needs more: the file's fault, as far as one knows
        Image.new("RGB", (9000, 9000)).save(tmp_path / "wide.png", compress_level=1)
        assert check(tmp_path / "wide.png")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with uploads.checker() as check, pytest.raises(RuntimeError, match="did not start"):
        check(tmp_path / "good.png")


def test_the_child_has_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    put(tmp_path, {"good.png": GOOD["a.png"]})
    with uploads.checker() as check:
        check(tmp_path / "good.png")
        (child,) = children()
        assert b"verysecret" not in Path(f"/proc/{child}/environ").read_bytes()


def item(name: str, size: int = 3) -> inbox.Item:
    return inbox.Item(f"in/{name}", name, size, '"x"', datetime.now(UTC))


def test_the_listing_is_held_against_the_manifest() -> None:
    read = uploads.read_manifest(
        listing("good.png", "short.png", "absent.png", "list.csv", "known.png", "big.png"), "columbia"
    )
    items = {n: item(n) for n in ("manifest.json", "good.png", "list.csv", "extra.png", "../evil.png")}
    items |= {"short.png": item("short.png", 2), "big.png": item("big.png", 3)}
    good, reasons = intake.sort_out(read, items, {"known.png": "was bad"}, LIMITS)
    assert [entry.path for entry in good] == ["good.png", "big.png"]
    assert set(reasons) == {"short.png", "absent.png", "list.csv", "known.png", "extra.png", "../evil.png"}
    assert "2 bytes" in reasons["short.png"]
    assert "not uploaded" in reasons["absent.png"]
    assert "not listed" in reasons["extra.png"]
    assert reasons["known.png"] == "was bad"
    small = uploads.Limits(file=2)
    assert intake.sort_out(read, items, {}, small)[0] == []


def test_quotas() -> None:
    assert uploads.beyond({"a": 1, "b": 2}, uploads.Limits(files=2, upload=3)) == ""
    assert "more than 1 objects" in uploads.beyond({"a": 1, "b": 2}, uploads.Limits(files=1))
    assert "3 bytes" in uploads.beyond({"a": 1, "b": 2}, uploads.Limits(upload=2))


def test_an_uploader_writes_a_manifest_that_the_watch_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, {"4cam_auth/a.tif": GOOD["a.tif"], "notes.txt": b"hello", ".DS_Store": b"x"})
    assert lookout.main(["manifest", str(tmp_path), "--dataset", "columbia", "--note", "first half"]) == 0
    out = capsys.readouterr()
    assert "will be quarantined: 'notes.txt'" in out.err
    read = uploads.read_manifest((tmp_path / "manifest.json").read_bytes(), "columbia")
    assert [entry.path for entry in read.files] == ["4cam_auth/a.tif", "notes.txt"]
    assert read.note == "first half"
    again = (tmp_path / "manifest.json").read_bytes()
    assert lookout.main(["manifest", str(tmp_path), "--dataset", "columbia", "--note", "first half"]) == 0
    assert (tmp_path / "manifest.json").read_bytes() == again
    for dataset in ("Columbia", "photos", "catnet", "generic"):
        assert lookout.main(["manifest", str(tmp_path), "--dataset", dataset]) == 2
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    assert lookout.main(["manifest", str(tmp_path), "--dataset", "columbia"]) == 2
    assert "is a link" in capsys.readouterr().err


def files(*names: str) -> dict[str, bytes]:
    return {name: picture("PNG" if name.endswith("png") else "TIFF", seed=zlib.crc32(name.encode())) for name in names}


def merge(root: Path, dataset: str, contents: dict[str, bytes], **options: Any) -> landing.Merged:
    work = landing.prepare(root, dataset, "u1", HASH)
    put(work / landing.FILES, contents)
    return landing.merge(
        root, dataset, work, {n: hashlib.sha256(d).hexdigest() for n, d in contents.items()}, **options
    )


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_second_upload_joins_the_first(tmp_path: Path) -> None:
    first, second = files("4cam_auth/a.tif", "4cam_auth/b.tif"), files("4cam_auth/b.tif", "4cam_auth/c.tif")
    raw = tmp_path / "data/raw/columbia"
    raw.mkdir(parents=True)
    (raw / "SOURCE.json").write_text('{"source": "stand_in"}')
    done = merge(tmp_path, "columbia", first)
    assert (done.taken, done.there, done.refused) == (2, 0, {})
    assert landing.pending(tmp_path) == ["columbia"]
    done = merge(tmp_path, "columbia", second)
    assert (done.taken, done.there, done.refused) == (1, 1, {})
    assert tree(raw / "files") == {**first, **second}
    source = json.loads((raw / "SOURCE.json").read_text())
    assert source["source"] == "real"
    assert source["counts"] == {"authentic": {"ok": 3}}

    # the same again changes nothing; another file under a name that is there, or its twin in another case, is refused
    before = tree(raw)
    done = merge(tmp_path, "columbia", second)
    assert (done.taken, done.there) == (0, 2)
    clash = {"4cam_auth/a.tif": GOOD["a.tif"], "4cam_auth/A.tif": GOOD["a.tif"], "4CAM_auth/x.tif": GOOD["a.tif"]}
    done = merge(tmp_path, "columbia", clash)
    assert (done.taken, done.there) == (0, 0)
    assert set(done.refused) == set(clash)
    with pytest.raises(ValueError, match="all or nothing"):
        merge(tmp_path, "columbia", {**clash, **files("4cam_auth/d.tif")}, whole=True)
    assert tree(raw) == before


def test_an_upload_may_add_and_not_alter(tmp_path: Path) -> None:
    merge(tmp_path, "mine", files("images/a.png", "images/b.png"))
    before = tree(tmp_path / "data/raw/mine")
    with pytest.raises(ValueError, match="1 images that are there would be used otherwise"):  # authentic until now
        merge(tmp_path, "mine", {"masks/a.png": mask(), **files("images/c.png")})
    with pytest.raises(ValueError, match="images/a"):  # the same picture under an earlier name
        merge(tmp_path, "mine", {"images/0.png": files("images/a.png")["images/a.png"]})
    assert tree(tmp_path / "data/raw/mine") == before
    with pytest.raises(ValueError, match="no image of columbia found"):
        merge(tmp_path, "columbia", files("a.png"))
    assert not (tmp_path / "data/raw/columbia").exists()


def test_an_image_is_not_taken_for_something_else_without_a_file_that_is_refused(tmp_path: Path) -> None:
    pictures = files("images/a.png", "images/b.png")
    with pytest.raises(ValueError, match="1 images would be used otherwise"):  # authentic, without mask
        merge(tmp_path, "mine", pictures, missing=["masks/a.png"])
    with pytest.raises(ValueError, match="the layout needs a file that is not taken"):
        merge(tmp_path, "mine", pictures, missing=["pairs.csv"])
    masks = {"reference/mask/a.png": mask(), "probe/a.jpg": picture("JPEG", (18, 16))}
    with pytest.raises(ValueError, match="used otherwise"):  # in the official layout black is manipulated
        merge(tmp_path, "nist16", masks, missing=["reference/manipulation/NC2016-manipulation-ref.csv"])
    assert not (tmp_path / "data/raw/mine").exists()
    assert not (tmp_path / "data/raw/nist16").exists()
    assert merge(tmp_path, "mine", pictures, missing=["README.txt", "dvc.yaml", "images/c.png"]).taken == 2
    fake = {"ColorFakeImages/a.jpg": picture("JPEG"), "ColorRealImages/b.jpg": picture("JPEG", seed=1)}
    merge(tmp_path, "fantasticreality", fake, missing=["SegmentationFake/a.npz"])
    source = json.loads((tmp_path / "data/raw/fantasticreality/SOURCE.json").read_text())
    assert source["counts"] == {"authentic": {"ok": 1}, "splice": {"rejected": 1}}


def test_a_set_that_is_real_elsewhere_is_not_replaced_by_a_part(tmp_path: Path) -> None:
    raw = tmp_path / "data/raw/columbia"
    raw.mkdir(parents=True)
    (raw / "SOURCE.json").write_text('{"source": "real", "module": "columbia"}')
    with pytest.raises(inbox.LeftError, match="has no files here"):
        merge(tmp_path, "columbia", files("4cam_auth/a.tif"))


KILLED = """
import os, signal, sys
from pathlib import Path
from flows.incoming import landing
rename, moment, count = os.rename, int(sys.argv[2]), 0
def killing(source, target):
    global count
    count += 1
    if count == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.rename = killing
root = Path(sys.argv[1])
work = root / landing.INCOMING / "columbia~u1"
landing.merge(root, "columbia", work, __import__("json").loads(sys.argv[3]))
"""


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_killed_merge_is_undone_or_done(tmp_path: Path, moment: int) -> None:
    """SIGKILL before each rename: of what `data add` makes, of the old set, of the one that replaces it."""
    first, second = files("4cam_auth/a.tif"), files("4cam_auth/b.tif")
    merge(tmp_path, "columbia", first)
    before = tree(tmp_path / "data/raw/columbia")
    put(landing.prepare(tmp_path, "columbia", "u1", HASH) / landing.FILES, second)
    hashes = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in second.items()})
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(moment), hashes]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert run.returncode == -signal.SIGKILL
    landing.recover(tmp_path, {"columbia~u1"})
    assert tree(tmp_path / "data/raw/columbia") == before
    assert sorted(p.name for p in (tmp_path / landing.INCOMING / "columbia~u1").iterdir()) == ["files", "manifest"]
    assert merge(tmp_path, "columbia", second).taken == 1
    assert tree(tmp_path / "data/raw/columbia/files") == {**first, **second}
    landing.recover(tmp_path)
    assert list((tmp_path / landing.INCOMING).iterdir()) == []


def test_downloads_of_another_manifest_are_not_used(tmp_path: Path) -> None:
    work = landing.prepare(tmp_path, "columbia", "u1", "one")
    put(work / landing.FILES, {"a": b"x"})
    assert (landing.prepare(tmp_path, "columbia", "u1", "one") / landing.FILES / "a").is_file()
    assert not (landing.prepare(tmp_path, "columbia", "u1", "two") / landing.FILES / "a").exists()


def test_what_an_added_set_touches() -> None:
    upstream: dict[str, frozenset[str]] = {
        "ingest-columbia": frozenset(), "ingest-casia1": frozenset(), "photos": frozenset(),
        "p.yaml:score": frozenset(["ingest-columbia", "photos"]), "p.yaml:table": frozenset(["p.yaml:score"]),
        "q.yaml:table": frozenset(["ingest-casia1"]),
    }  # fmt: skip
    graph = walk.Graph(upstream, frozenset())
    assert lookout.touched(graph, ["columbia", "mine"]) == (
        ["ingest-columbia", "p.yaml:score", "p.yaml:table"],
        ["mine"],
    )


def test_prefixes_do_not_lie_within_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("UNFORGE_INCOMING", "UNFORGE_QUARANTINE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="UNFORGE_INCOMING"):
        inbox.connect(None, None, tmp_path, 60)
    for incoming, quarantine in [
        ("s3://team", None),
        ("s3://team/in", "s3://team/in/bad"),
        ("s3://team/in/x", "s3://team/in"),
        ("s3://team/in", "s3://team/in"),
        ("s3://team/in", "s3://other"),
        ("s3://team/in", "s3://team/in-state/bad"),
        ("team/in", None),
    ]:
        with pytest.raises(ValueError):
            inbox.connect(incoming, quarantine, tmp_path, 60)
    box = inbox.connect("s3://team/in/", None, tmp_path, 60)
    assert (box.incoming, box.state, box.quarantine) == ("in", "in-state", ("team", "in-quarantine"))
    assert inbox.connect("s3://team/in", None, tmp_path, 60).owner == box.owner
    other = tmp_path / "other"
    (other / ".unforge").mkdir(parents=True)
    assert inbox.connect("s3://team/in", None, other, 60).owner != box.owner


def test_credentials_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    text = inbox.masked("http://me:pw@host/x?key=someone&secret=topsecret")
    assert not any(word in text for word in ("topsecret", "someone", "pw"))


def test_one_watch_at_a_time_in_a_workspace(tmp_path: Path) -> None:
    busy = pytest.raises(ValueError, match=f"another watch is at work .*process {os.getpid()}")
    with lookout.alone(tmp_path), busy, lookout.alone(tmp_path):
        pass
    with lookout.alone(tmp_path):
        pass
