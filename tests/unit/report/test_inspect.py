"""Someone's own photographs: what is written, what is said first, and that bad input harms nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unforge import inspect, methods, paths, scores
from unforge.types import Prediction

RUN = "constant/centre"


def run_dir(root: Path, variant: str = "centre", scale: str = "small") -> Path:
    folder = root / "models/small/runs/constant" / variant
    folder.mkdir(parents=True)
    config = methods.config("constant", variant)
    methods.save(methods.build("constant", config), "constant", variant, config, folder)
    entry = paths.read_json(folder / "config.json")
    paths.write_json(folder / "config.json", entry | {"scale": scale})
    return folder


def picture(path: Path, size: tuple[int, int] = (40, 24), mode: str = "RGB", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 0).save(path, **options)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_dir(tmp_path)


def test_overlay_mask_and_json_are_written(tmp_path: Path, run: Path) -> None:
    photo = picture(tmp_path / "in/holiday.png")
    rows = inspect.inspect([photo], run, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "holiday.json",
        "holiday.mask.png",
        "holiday.overlay.png",
    ]
    row = json.loads((tmp_path / "out/holiday.json").read_text())
    assert rows == [row]
    y, x = np.mgrid[:24, :40]
    expected = 2.0 ** -((((y + 0.5) / 12 - 1) ** 2 + ((x + 0.5) / 20 - 1) ** 2) / 0.25)
    assert row["sha256"] == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert (row["width"], row["height"], row["run"], row["scale"]) == (40, 24, RUN, "small")
    assert row["score"] == pytest.approx(expected.max(), abs=1e-5)
    assert row["manipulated_share"] == pytest.approx((expected > 0.5).mean())
    mask = np.asarray(Image.open(tmp_path / "out/holiday.mask.png"))
    assert np.abs(mask - expected * 255).max() <= 0.51
    overlay = np.asarray(Image.open(tmp_path / "out/holiday.overlay.png"))
    np.testing.assert_array_equal(overlay.any(axis=-1), expected > 0.5)


def test_the_statement_comes_first_and_there_is_no_verdict(tmp_path: Path, run: Path) -> None:
    lines: list[str] = []
    rows = inspect.inspect([picture(tmp_path / "a.png"), picture(tmp_path / "b.png")], run, tmp_path / "out")
    inspect.echo(rows, lines.append)
    assert "small scale" in lines[0]
    assert "not measured on real data" in lines[0]
    assert "This is no evidence" in lines[0]
    assert [line.partition(":")[0] for line in lines[1:]] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    said = " ".join(lines[1:]).lower()
    for verdict in ("forged", "authentic", "genuine", "fake", "yes", "tampered"):
        assert verdict not in said


@pytest.mark.parametrize(("data", "expected"), [("real", "pixel AUC 0.750"), ("stand_in", "not measured on real data")])
def test_auc_is_told_only_where_it_was_measured_on_real_data(tmp_path: Path, data: str, expected: str) -> None:
    folder = run_dir(tmp_path, scale="paper")
    probability = np.array([[0.1, 0.4], [0.3, 0.9]], dtype=np.float32)  # of 4 pairs, 3 are in order
    mask = np.array([[False, False], [True, True]])
    row = {"unit": "a", "source": ["p"], "seed": 0, "testset": "casia1", "label": 1, "kind": "splice", "width": 2}
    row |= {"height": 2, "data": data, "run": RUN, "run_sha256": "", "testset_sha256": "", "testset_version": ""}
    row |= scores.pixel_statistics(probability, mask).columns()
    about = {"run": RUN, "method": "constant", "variant": "centre", "scale": "paper", "pretraining": "none", "seed": 0}
    target = tmp_path / "reports/small/scores" / RUN
    target.mkdir(parents=True)
    rows = [row | {"key": key, "unit": key, "source": [key]} for key in ("a", "b")]
    for testset in ("casia1", "casia1~jpeg70"):
        scores.write(target / f"{testset}.parquet", rows, about | {"testset": testset, "data": data, "recipe": ""})
    said = inspect.statement(folder)
    assert expected in said
    assert "jpeg70" not in said
    assert "no evidence" not in said
    assert "no verdict" in said


def test_exif_orientation_is_applied(tmp_path: Path, run: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = picture(tmp_path / "turned.jpg", size=(40, 24), exif=exif)
    row = inspect.inspect([photo], run, tmp_path / "out")[0]
    assert (row["width"], row["height"]) == (24, 40)
    assert Image.open(tmp_path / "out/turned.overlay.png").size == (24, 40)


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("grey.png", "L", {}),
        ("deep.png", "I;16", {}),
        ("alpha.webp", "RGBA", {}),
        ("palette.gif", "P", {}),
        ("print.tif", "CMYK", {}),
        ("small.bmp", "RGB", {}),
        ("plain.ppm", "RGB", {}),
        ("wave.jp2", "RGB", {}),
        ("bits.png", "1", {}),
    ],
)
def test_any_format_is_read(tmp_path: Path, run: Path, name: str, mode: str, options: dict[str, object]) -> None:
    row = inspect.inspect([picture(tmp_path / name, mode=mode, **options)], run, tmp_path / "out")[0]
    assert "error" not in row
    assert (row["width"], row["height"]) == (40, 24)


def claims(side: int) -> bytes:
    """A PNG of a few bytes that says it has `side` x `side` pixels."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, format="PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_bad_input_gives_a_row_with_the_reason_and_the_rest_goes_on(tmp_path: Path, run: Path) -> None:
    whole = picture(tmp_path / "good.jpg", size=(64, 64)).read_bytes()
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"not an image",
        "cut.jpg": whole[: len(whole) // 2],
        "bomb.png": claims(30000),
        "large.png": claims(9000),
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    bad = [tmp_path / name for name in (*contents, "folder.jpg", "pipe.jpg", "absent.jpg")]
    rows = inspect.inspect([*bad, tmp_path / "good.jpg"], run, tmp_path / "out")
    errors = {Path(row["file"]).name: row.get("error", "") for row in rows}
    assert "error" not in rows[-1]
    assert all(errors[path.name] for path in bad)
    assert "900000000 pixels" in errors["bomb.png"]
    assert "9000x9000 pixels: at most" in errors["large.png"]
    assert "no such file" in errors["absent.jpg"]
    assert "not a file" in errors["folder.jpg"]
    assert "not a file" in errors["pipe.jpg"]
    assert "not an image" in errors["program.eps"]
    assert sorted(path.stem.partition(".")[0] for path in (tmp_path / "out").iterdir()) == ["good"] * 3
    lines: list[str] = []
    inspect.echo(rows, lines.append)
    assert len([line for line in lines if "not inspected" in line]) == len(bad)


def test_names_never_collide_nor_leave_the_folder(tmp_path: Path, run: Path) -> None:
    first, second, upper = (picture(tmp_path / name) for name in ("a/p.png", "b/p.png", "c/P.png"))
    taken = picture(tmp_path / "d/p-2.png")
    odd = [picture(tmp_path / "e" / name) for name in ("...x.png", "-rf.png", "a b;$(x).png", "\x1b[31mred.png")]
    long = picture(tmp_path / ("f" * 240 + ".png"))
    rows = inspect.inspect([first, second, upper, taken, first, *odd, long], run, tmp_path / "out")
    names = [row["overlay"].removesuffix(".overlay.png") for row in rows]
    assert names[:5] == ["p", "p-2", "P-3", "p-2-2", "p-4"]
    assert len({name.casefold() for name in names}) == len(rows)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for name in names)
    assert not any(name.startswith(("-", ".")) for name in names)
    assert len(list((tmp_path / "out").iterdir())) == 3 * len(rows)
    lines: list[str] = []
    inspect.echo(rows, lines.append)
    assert "\x1b" not in "".join(lines)


def test_an_input_is_never_written_over(tmp_path: Path, run: Path) -> None:
    photo, other = picture(tmp_path / "x.png"), picture(tmp_path / "x.overlay.png")
    before = other.read_bytes()
    rows = inspect.inspect([photo, other], run, tmp_path)
    assert other.read_bytes() == before
    assert rows[0]["overlay"] == "x-2.overlay.png"


def test_a_link_in_the_folder_is_replaced_and_not_followed(tmp_path: Path, run: Path) -> None:
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("kept")
    (tmp_path / "out").mkdir()
    for end in ("overlay.png", "mask.png", "json"):
        (tmp_path / f"out/y.{end}").symlink_to(elsewhere)
    inspect.inspect([picture(tmp_path / "y.png")], run, tmp_path / "out")
    assert elsewhere.read_text() == "kept"


def test_a_file_name_that_is_no_text_is_taken(tmp_path: Path, run: Path) -> None:
    photo = picture(tmp_path / "n.png")
    target = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    os.rename(photo, target)
    row = inspect.inspect([Path(os.fsdecode(target))], run, tmp_path / "out")[0]
    assert "error" not in row
    assert row["file"].endswith("��.png")


def test_two_runs_give_the_same_bytes(tmp_path: Path, run: Path) -> None:
    photo = picture(tmp_path / "z.jpg")
    for out in ("one", "two"):
        inspect.inspect([photo], run, tmp_path / out)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="models/small/runs/none"):
        inspect.inspect([], tmp_path / "models/small/runs/none", tmp_path / "out")


def test_what_a_method_wrote_and_its_classes_are_told(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Talking:
        def predict(self, image: torch.Tensor) -> Prediction:
            said = ("tampered\x1b[31m <|mt_start|>",)
            return Prediction(mask=torch.zeros(1, 1, 2, 2), text=said, class_probs=torch.tensor([[0.25, 0.5, 0.25]]))

    monkeypatch.setattr(methods, "load", lambda folder: Talking())
    (row,) = inspect.inspect([picture(tmp_path / "in/a.png")], run, tmp_path / "out")
    assert row["text"] == "tampered\x1b[31m <|mt_start|>"
    assert row["class_probs"] == [0.25, 0.5, 0.25]
    lines: list[str] = []
    inspect.echo([row], lines.append)
    assert "  it wrote: tampered\ufffd[31m <|mt_start|>" in lines


class Anchored:
    """A method that names a class and has one heat map of the whole image, or one for each of four anchors."""

    EXTRAS = ("attention_last",)

    def __init__(self, anchors: int) -> None:
        self.anchors = anchors
        self.asked: list[bool] = []

    def predict(self, image: torch.Tensor, extras: bool = False) -> Prediction:
        self.asked.append(extras)
        mask = torch.zeros(1, 1, 4, 4)
        mask[..., 2:, 2:] = 1.0
        maps = mask.expand(1, self.anchors**2, 4, 4).reshape(1, self.anchors, self.anchors, 4, 4)
        probabilities = torch.tensor([[0.1, 0.2, 0.7]])
        return Prediction(
            mask=mask, class_probs=probabilities, score=torch.tensor([0.9]), extras={"attention_last": maps}
        )


def test_class_heat_map_and_mask(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = Anchored(1)
    monkeypatch.setattr(methods, "load", lambda folder: method)
    rows = inspect.inspect([picture(tmp_path / "in/holiday.png", (32, 32))], run, tmp_path / "out")
    assert method.asked == [True]
    assert (rows[0]["class"], rows[0]["heat"]) == ("tampered", "holiday.heat.png")
    heat = np.asarray(Image.open(tmp_path / "out/holiday.heat.png")).astype(int)
    assert heat.shape == (32, 32, 3)
    assert heat[28:, 28:].sum() > 5 * heat[:4, :4].sum(), "hot where the error is"
    lines: list[str] = []
    inspect.echo(rows, lines.append)
    assert "class tampered (0.70), score 0.900" in lines[1]
    assert "heat map holiday.heat.png" in lines[1]
    assert paths.read_json(tmp_path / "out/holiday.json")["class"] == "tampered"


def test_maps_of_several_anchors_are_not_one_heat_map(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "load", lambda folder: Anchored(2))
    rows = inspect.inspect([picture(tmp_path / "in/holiday.png", (32, 32))], run, tmp_path / "out")
    assert "heat" not in rows[0]
    assert not (tmp_path / "out/holiday.heat.png").exists()
    assert inspect.named([0.5, 0.5]) is None
