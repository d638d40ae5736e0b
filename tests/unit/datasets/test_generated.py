"""Images that official models generated elsewhere: pairing with tokens, what is refused and why, and what comes out."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import save_file

from tests.unit.datasets.dataset_trees import picture
from unforge import shards, tokenizers
from unforge.cli import main
from unforge.datasets import add, generated

Row = dict[str, Any]


def png(name: str, size: int = 256) -> bytes:
    return shards.encode_png(picture(name, (size, size)))


def tokens(name: str = "", count: int = 680, codes: int = 4096) -> np.ndarray:
    return np.random.default_rng(len(name)).integers(0, codes, count)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def pt(value: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def read(folder: Path, origin: str = "var", seed: int = 0) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """Samples by key, and (status, reason) by file."""
    rows: list[Row] = []
    samples = {sample.key: sample for sample in generated.read(origin, folder, rows, seed)}
    return samples, {row["source_image"]: (row["status"], row["reason"]) for row in rows}


def test_the_forms_are_those_of_the_tokenizers() -> None:
    assert sorted(generated.FORMS) == tokenizers.names()
    for name, form in generated.FORMS.items():
        config = tokenizers.load_module(name).Config()
        assert form.size == config.image_size
        grid = config.image_size // config.factor
        assert form.tokens == sum(side**2 for side in getattr(config, "scales", (grid,)))
        if form.bits is not None:
            assert (form.bits, form.codes) == (config.bits, 2)
        else:
            assert form.codes == getattr(config, "used", config.codes)


def test_every_way_to_give_tokens_is_read_alike(tmp_path: Path) -> None:
    wanted = tokens()
    save_file({"tokens": wanted.astype(np.int32)}, tmp_path / "tensors")
    put(tmp_path / "set", {f"images/{name}.png": png(name) for name in "abcdef"} | {"side.png": png("side")})
    put(
        tmp_path / "set",
        {
            "tokens/a.npy": npy(wanted.astype(np.uint16)),
            "tokens/b.safetensors": (tmp_path / "tensors").read_bytes(),
            "tokens/c.pt": pt(torch.from_numpy(wanted)),
            "tokens/d.pt": pt({"tokens": torch.from_numpy(wanted)[None]}),
            "tokens/e.npy": npy(wanted[None]),
            "images/f.npy": npy(wanted),
            "side.npy": npy(wanted),
        },
    )
    samples, rows = read(tmp_path / "set")
    assert sorted(samples) == ["a", "b", "c", "d", "e", "f", "side"]
    assert set(rows.values()) == {("ok", "")}
    for name, sample in samples.items():
        stored = np.load(io.BytesIO(sample.tokens), allow_pickle=False)
        assert stored.dtype == np.int64
        np.testing.assert_array_equal(stored, wanted)
        assert sample.image == png(name)
        assert (sample.origin, sample.kind, sample.label, sample.mask, sample.unit) == (
            "var",
            "generated",
            1,
            None,
            name,
        )
        assert sample.meta == {"generation_mode": "external"}


def test_bits_of_infinity(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).random((10521, 32)) < 0.5
    files = {f"images/{name}.png": png(name, 1024) for name in ("a", "b", "c", "d")}
    files |= {"tokens/a.npy": npy(bits), "tokens/b.npy": npy(bits.astype(np.int64))}
    files |= {"tokens/c.npy": npy(bits.T.copy()), "tokens/d.npy": npy(bits * 2 - 1)}
    samples, rows = read(put(tmp_path, files), "infinity")
    assert sorted(samples) == ["a", "b"]
    for sample in samples.values():
        stored = np.load(io.BytesIO(sample.tokens))
        assert stored.dtype == np.bool_
        np.testing.assert_array_equal(stored, bits)
    assert "infinity has bits of shape (10521, 32)" in rows["images/c.png"][1]
    assert rows["images/d.png"][0] == "rejected"


HOSTILE = os.path.join  # a function: nothing that a file of tensors may name


@pytest.mark.parametrize(
    ("ending", "content", "said"),
    [
        ("npy", npy(tokens()[:-1]), "tokens (679,) of int64: var has integers of shape (680,)"),
        ("npy", npy(tokens().astype(np.float32)), "of float32"),
        ("npy", npy(tokens() > 7), "of bool"),
        ("npy", npy(np.append(tokens()[1:], 4096)), "those of var are 0 to 4095"),
        ("npy", npy(np.append(tokens()[1:], -1)), "tokens from -1"),
        ("npy", npy(tokens().reshape(2, 340)), "tokens (2, 340)"),
        ("npy", npy(np.array([HOSTILE], dtype=object)), "cannot be read"),
        ("npy", npy(tokens())[:3000], "cannot be read"),
        ("npy", b"", "cannot be read"),
        (
            "npy",
            npy(tokens()).replace(b"(680,), }" + b" " * 10, b"(9999999999999,), }"),
            "cannot be read (ValueError: mmap",
        ),
        ("npy", npy(tokens()).replace(b"(680,), }" + b" " * 10, b"(999999999,) * 9, }"), "cannot be read"),
        ("safetensors", b"\xff" * 64, "cannot be read"),
        ("pt", pt(HOSTILE), "cannot be read"),
        ("pt", pt({"codes": torch.zeros(680)}), "cannot be read (KeyError"),
        ("pt", pt(torch.zeros(1, dtype=torch.int64).expand(10**6, 10**6)), "tokens (1000000, 1000000)"),
        ("pt", pt(torch.zeros(680, dtype=torch.int64), _use_new_zipfile_serialization=False), "cannot be read"),
        ("pt", b"text", "cannot be read"),
    ],
)
def test_tokens_that_are_not_the_models(tmp_path: Path, ending: str, content: bytes, said: str) -> None:
    files = {"images/bad.png": png("bad"), f"tokens/bad.{ending}": content}
    samples, rows = read(put(tmp_path, files | {"images/good.png": png("good"), "tokens/good.npy": npy(tokens())}))
    assert list(samples) == ["good"]
    status, reason = rows["images/bad.png"]
    assert status == "rejected"
    assert said in reason


class Program:
    """Pickles to a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_tensor_file_runs_no_program(tmp_path: Path) -> None:
    put(
        tmp_path,
        {"a.png": png("a"), "a.pt": pt({"tokens": torch.zeros(680, dtype=torch.int64), "b": Program(tmp_path / "x")})},
    )
    assert read(tmp_path)[1]["a.png"][0] == "rejected"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("count", [680, 2**21])
def test_a_compressed_tensor_file_is_not_unpacked(tmp_path: Path, count: int) -> None:
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(pt(torch.zeros(count, dtype=torch.int64)))) as plain,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    put(tmp_path, {"a.png": png("a"), "a.pt": stream.getvalue()})
    assert "compressed" in read(tmp_path)[1]["a.png"][1]


def test_images_that_are_not_the_models(tmp_path: Path) -> None:
    def encoded(mode: str, format: str = "PNG", **options: Any) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(picture(mode + format, (256, 256))).convert(mode).save(stream, format, **options)
        return stream.getvalue()

    import cv2

    deep = cv2.imencode(".png", picture("deep", (256, 256)).astype(np.uint16) * 257)[1].tobytes()
    bad = {
        "grey": encoded("L"), "alpha": encoded("RGBA"), "palette": encoded("P"), "deep": deep,
        "clear": encoded("RGB", transparency=(1, 2, 3)), "large": png("large", 257), "cut": png("cut")[:5000],
        "text": b"no image", "empty": b"",
    }  # fmt: skip
    files = {f"images/{name}.png": content for name, content in bad.items()}
    files |= {f"tokens/{name}.npy": npy(tokens()) for name in (*bad, "twin", "photo", "lone", "orphan")}
    files |= {"images/photo.jpg": encoded("RGB", "JPEG"), "images/naked.png": png("naked")}
    files |= {"images/a.png": png("same"), "tokens/a.npy": npy(tokens()), "images/twin.png": png("same")}
    os.mkfifo(put(tmp_path, files) / "images/pipe.png")
    samples, rows = read(tmp_path)
    assert sorted(samples) == ["a", "naked", "photo"]
    assert {rows[f"images/{name}.png"][0] for name in (*bad, "twin", "pipe")} == {"rejected"}
    said = {name: rows[f"images/{name}.png"][1] for name in (*bad, "twin")}
    assert "16 bits: 8-bit RGB is needed" in said["deep"]
    assert all("8-bit RGB is needed" in said[name] for name in ("grey", "alpha", "palette", "clear"))
    assert "257x257 pixels: the model's images have 256x256" in said["large"]
    assert said["twin"] == "duplicate: the same bytes as images/a.png"
    assert rows["tokens/orphan.npy"] == rows["tokens/lone.npy"] == ("rejected", generated.ORPHAN)
    assert rows["images/naked.png"] == ("flagged", generated.NO_TOKENS)
    assert rows["images/photo.jpg"][0] == "flagged"
    assert samples["naked"].tokens is None
    assert samples["photo"].extension == "jpg"
    assert samples["photo"].meta["flags"] == [rows["images/photo.jpg"][1]]
    assert len(rows) == len(bad) + len(("twin", "pipe", "a", "photo", "naked", "lone", "orphan"))


def test_only_what_trains_leaves_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generated.FORMS, "var", generated.Form(size=8, tokens=4, codes=16))
    files = {f"images/{i:03}.png": png(str(i), 8) for i in range(400)}
    files |= {f"tokens/{i:03}.npy": npy(np.arange(4)) for i in range(300)}
    for i in range(40):
        Image.fromarray(picture(f"photo{i}", (8, 8))).save(stream := io.BytesIO(), "JPEG")
        files |= {f"images/photo{i}.jpg": stream.getvalue(), f"tokens/photo{i}.npy": npy(np.arange(4))}
    samples, _ = read(put(tmp_path, files))
    assert {samples[f"photo{i}"].split for i in range(40)} == {"test"}
    splits = Counter(samples[f"{i:03}"].split for i in range(300))
    for name, share in {"train": 0.6, "val": 0.1, "test": 0.3}.items():
        assert abs(splits[name] - 300 * share) < 4 * (300 * share * (1 - share)) ** 0.5
    assert {samples[f"{i:03}"].split for i in range(300, 400)} == {"test"}
    again, _ = read(tmp_path)
    assert {key: s.split for key, s in again.items()} == {key: s.split for key, s in samples.items()}
    other, _ = read(tmp_path, seed=1)
    assert {key: s.split for key, s in other.items()} != {key: s.split for key, s in samples.items()}


def test_generation_json_reaches_its_own_images(tmp_path: Path) -> None:
    files = {f"{place}/images/x.png": png(place) for place in ("one", "two", "three", "four")}
    files |= {f"{place}/tokens/x.npy": npy(tokens()) for place in ("one", "two", "three", "four")}
    files["one/generation.json"] = json.dumps({"generation_mode": "cfg 1.5", "checkpoint": "var_d30"}).encode()
    files["two/generation.json"] = b"{not json"
    files["three/generation.json"] = b'["cfg"]'
    samples, rows = read(put(tmp_path, files))
    assert len({sample.key for sample in samples.values()}) == len({s.source for s in samples.values()}) == 4
    by_image = {sample.image: sample.meta for sample in samples.values()}
    assert by_image[png("one")] == {"generation_mode": "cfg 1.5", "generation": {"checkpoint": "var_d30"}}
    assert by_image[png("four")] == {"generation_mode": "external"}
    for place in ("two", "three"):
        assert by_image[png(place)]["generation_mode"] == "external"
        assert rows[f"{place}/images/x.png"][0] == "flagged"
        assert "generation.json is left out" in rows[f"{place}/images/x.png"][1]


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of VAR with their tokens, one image of another size, one without tokens."""
    files = {f"images/{i:02}.png": png(str(i)) for i in range(12)} | {"images/naked.png": png("naked")}
    files |= {f"tokens/{i:02}.npy": npy(tokens(str(i))) for i in range(12)} | {"images/small.png": png("small", 32)}
    return put(tmp_path_factory.mktemp("made"), files | {"generation.json": b'{"generation_mode": "sampled"}'})


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["data", *arguments])


def test_a_set_is_checked_added_and_read_back(project: Path, made: Path) -> None:
    checked = run("check", "generated/var", str(made))
    assert checked.exit_code == 1  # one is rejected
    assert "generated_var (module generated): 14 found = 12 ok + 1 flagged + 1 rejected" in checked.stdout
    assert not (project / "data/raw/generated_var").exists()
    added = run("add", "generated/var", str(made))
    assert added.exit_code == 0, added.output
    assert "sample their own" in added.stdout
    raw = project / "data/raw/generated_var"
    source = json.loads((raw / "SOURCE.json").read_text())
    assert (source["source"], source["module"]) == ("real", "generated")
    assert source["counts"] == {"generated": {"ok": 12, "flagged": 1, "rejected": 1}}
    assert (raw / "files/tokens/03.npy").read_bytes() == (made / "tokens/03.npy").read_bytes()
    rows: list[Row] = []
    shards.write(
        project / "set", generated.samples(raw, rows, 0), name="generated_var", data="real", version=generated.VERSION
    )
    stored = shards.ShardSet(project / "set")
    assert len(stored.rows) == 13
    for i in range(12):
        key = f"{i:02}"
        assert stored.rows[key]["origin"] == "var"
        np.testing.assert_array_equal(stored.tokens(key), tokens(str(i)))
        np.testing.assert_array_equal(stored.image(key), picture(str(i), (256, 256)))
    with pytest.raises(ValueError, match="tokens of naked"):
        stored.tokens("naked")
    listed = {entry["id"]: entry["status"] for entry in add.list_(project)}
    assert (listed["generated"], listed["generated_var"]) == ("sampled", "real")


def test_an_archive_gives_the_same_manifest(project: Path, made: Path, tmp_path: Path) -> None:
    packed = tmp_path / "made.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(made.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(made).as_posix())
        archive.writestr("../escaped.npy", npy(tokens()))
    add.add("generated/var", made, project)
    first = (project / "data/raw/generated_var/SOURCE.json").read_bytes()
    report = add.add("generated_var", packed, project)
    assert [row["reason"] for row in report.rows if "escaped" in row["source_image"]] == ["path traversal (..)"]
    second = json.loads((project / "data/raw/generated_var/SOURCE.json").read_text())
    assert second["manifest_sha256"] == json.loads(first)["manifest_sha256"]
    assert not list(tmp_path.parent.rglob("escaped.npy"))


def test_wrong_names_and_folders_say_what_is_meant(project: Path, made: Path, tmp_path: Path) -> None:
    for name in ("generated", "generated/vra", "generated/../var"):
        result = run("add", name, str(made))
        assert result.exit_code == 2
        assert "say which model made the images: generated/infinity, generated/llamagen" in result.stderr
    (tmp_path / "empty").mkdir()
    result = run("check", "generated/var", str(tmp_path / "empty"))
    assert (result.exit_code, "expected: images/<name>.png (8-bit RGB" in result.stderr) == (2, True)
    result = run("add", "generated/llamagen", str(made))  # VAR's images are none of LlamaGen's
    assert result.exit_code == 2
    assert "no usable image" in result.stderr
    assert "the model's images have 384x384" in result.stderr
    for raw in ("data/raw/casia1", "data/raw/generated_rar"):
        with pytest.raises(ValueError, match="holds no generated images"):
            list(generated.samples(Path(raw), []))
