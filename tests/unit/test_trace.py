"""Whether a model made someone's image: what is measured, what is decided and when, what is said first."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result

from tests.unit.provenance.toys import PatchToy, photographs
from unforge import paths, profiles, scores, shards, tokenizers, trace
from unforge.cli import main
from unforge.provenance import inverse, rates, score

SIZE = 16
CODES: dict[str, dict[str, Any]] = {
    "llamagen": {"codes": 24, "latent": 8},
    "taming": {"codes": 24, "latent": 8, "channels": 6},
    "var": {"codes": 24, "channels": 6, "scales": (1, 2, 4)},
}
TINY: dict[str, Any] = {"image_size": SIZE, "width": 4, "multipliers": (1, 2, 3), "blocks": 1, "groups": 2}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["trace", *arguments])


def save(name: str, official: bool = False, **changes: Any) -> None:
    """A tiny tokenizer of a family and its inverse decoder (the encoder as it is), where trace looks for them."""
    torch.manual_seed(0)
    config = dataclasses.replace(tokenizers.load_module(name).SMALL, **{**TINY, **CODES[name], **changes})
    tokenizer = tokenizers.build(name, config)
    for folder in (paths.codebook("small", name), paths.inverse("small", name)):
        folder.mkdir(parents=True)
    tokenizers.save(tokenizer, name, paths.codebook("small", name))
    about = {"tokenizer": name, **({"official": True} if official else {})}
    paths.write_json(paths.codebook("small", name) / "meta.json", paths.meta(about, 0, {}))
    inverse.save(inverse.InverseDecoder(tokenizer), paths.inverse("small", name))


def calibrate(name: str, signal: str, values: list[float], testset: str = "coco") -> Path:
    """`calibration.parquet` as the stage signals writes it."""
    folder = paths.scores("small", f"iar_provenance/{name}/inverse/s0")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"testset": testset, "key": str(i), "signal": signal, "value": v} for i, v in enumerate(values)]
    rows += [row | {"signal": "enc_loss", "value": -1.0} for row in rows]  # of another signal: not to be taken
    pq.write_table(pa.Table.from_pylist(rows, schema=score.CALIBRATION), folder / "calibration.parquet")
    inputs = {
        "codebook": paths.sha256(paths.codebook("small", name) / "model.safetensors"),
        "inverse": paths.sha256(paths.inverse("small", name) / "inverse.safetensors"),
    }
    paths.write_json(folder / "meta.json", paths.meta({}, 0, inputs))
    return folder


def measured(folder: Path, testset: str, signals: list[dict[str, float]]) -> None:
    """A score file as the stage signals writes it."""
    row = {"seed": 0, "label": 1, "kind": "generated", "width": SIZE, "height": SIZE, "data": "stand_in", "run": "r"}
    row |= {"run_sha256": "", "testset_sha256": "", "testset_version": "", "testset": testset}
    rows = [row | {"key": str(i), "unit": str(i), "source": [str(i)], "signals": s} for i, s in enumerate(signals)]
    about = {"run": "r", "method": "iar_provenance", "variant": "inverse", "scale": "small", "pretraining": "none"}
    about |= {"seed": 0, "testset": testset, "data": "stand_in", "recipe": ""}
    scores.write(folder / f"{testset}.parquet", rows, about)


def picture(path: Path, array: np.ndarray | None = None, size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    if array is None:
        array = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.write_bytes(shards.encode_png(array))
    return path


@pytest.fixture
def toy(project: Path, monkeypatch: pytest.MonkeyPatch) -> PatchToy:
    """Infinity, whose decision is by QuantLoss, as a toy that is its own exact inverse: QuantLoss is that of 8 bits."""
    codec = PatchToy()
    folder = paths.codebook("small", "infinity")
    folder.mkdir(parents=True)
    paths.write_json(folder / "config.json", {"tokenizer": "infinity", "config": {"image_size": SIZE}})
    (folder / "model.safetensors").write_bytes(b"toy")
    paths.inverse("small", "infinity").mkdir(parents=True)
    (paths.inverse("small", "infinity") / "inverse.safetensors").write_bytes(b"toy")
    monkeypatch.setattr(tokenizers, "load", lambda directory: codec)
    monkeypatch.setattr(inverse, "load", lambda tokenizer, directory: codec)
    return codec


def eight_bits(image: torch.Tensor) -> np.ndarray:
    return image.clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy().astype(np.uint8)


def test_own_images_are_below_the_threshold_and_photographs_are_not(toy: PatchToy, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    made = toy.decode(toy.lookup(torch.from_numpy(rng.integers(0, 32, (3, 16)))))
    real = photographs(SIZE)[:3]
    images = [picture(tmp_path / f"{i}.png", eight_bits(image)) for i, image in enumerate([*made, *real])]
    # rounding to 8 bits moves a pixel by at most half a grey value, and the toy keeps distances
    most = (0.5 / 255) ** 2
    calibrate("infinity", "quant_loss", [most + i for i in range(99)])
    rows = trace.trace(images, "infinity", profiles.load(), 0.01)
    found = [row["models"][0] for row in rows]
    assert [one["decision"] for one in found] == [True] * 3 + [False] * 3
    for one in found[:3]:
        assert 0 < one["value"] == one["signals"]["inverse"]["quant_loss"] <= most
        assert one["signals"]["own"] == one["signals"]["inverse"]  # the toy's encoder is its inverse
        assert one["ratio"] == pytest.approx(one["value"] / most)
        assert one["resampled"] is False
    assert all(one["threshold"] == pytest.approx(most) for one in found)  # the smallest of 99 at 1 %
    assert [row["likeliest"] for row in rows] == [["infinity"]] * 3 + [[]] * 3
    assert trace.failed(rows) == 0


def test_the_threshold_follows_the_rate(toy: PatchToy) -> None:
    values = [float(i) for i in range(1, 100)]
    calibrate("infinity", "quant_loss", values)
    assert trace.opened("infinity", profiles.load(), 0.05).threshold == 5.0  # floor(0.05 * 100)-th smallest
    none = trace.opened("infinity", profiles.load(), 0.005)
    assert none.threshold is None
    assert "199 are needed" in none.why


def test_without_a_calibration_there_are_signals_and_no_verdict(toy: PatchToy, tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png")
    for prepare in (
        lambda: None,
        lambda: calibrate("infinity", "combined", [1.0] * 200),  # of another signal than the model's
        lambda: calibrate("infinity", "quant_loss", [1.0] * 20),  # too few
        lambda: (
            calibrate("infinity", "quant_loss", [1.0] * 200),
            (paths.inverse("small", "infinity") / "inverse.safetensors").write_bytes(b"trained again"),
        ),
        lambda: (paths.inverse("small", "infinity") / "inverse.safetensors").unlink(),
    ):
        prepare()
        (row,) = trace.trace([photo], "infinity", profiles.load())
        (one,) = row["models"]
        assert one["signals"]["own"]["quant_loss"] > 0
        assert (one["decision"], one["threshold"], one["ratio"], row["likeliest"]) == (None, None, None, None)
        assert one["why"]
        lines: list[str] = []
        trace.echo([row], lines.append)
        assert f"no verdict: {one['why']}" in lines[-1]
        assert "below" not in lines[-1]


def test_what_is_said_first(project: Path, tmp_path: Path) -> None:
    save("llamagen")
    save("taming", official=True, image_size=32)
    folder = calibrate("llamagen", "combined", [0.5 + i for i in range(99)])
    own = [{"combined": 0.1}] * 3 + [{"combined": 0.9}, {"quant_loss": 0.0}]  # one without the signal: not counted
    measured(folder, "generated_llamagen", own)
    measured(folder, "coco", [{"combined": 1.0}] * 9 + [{"combined": 0.0}])
    calibrate("taming", "combined", [0.5] * 99)
    result = run(str(picture(tmp_path / "a.png", size=(40, 40))), "--iar", "all")
    assert result.exit_code == 0, result.output
    said = result.stdout.splitlines()[0]
    assert said.startswith("Models at small scale, trained in this project: llamagen (16 px). This is no evidence")
    assert "Official weights: taming (32 px)" in said
    low, high = rates.clopper_pearson(3, 4)
    assert f"llamagen finds 0.750 ({low:.3f} to {high:.3f}) of its own images, n 4" in said
    assert "and 0.100 of 10 photographs (coco)" in said
    assert "taming finds" not in said  # nothing measured it
    assert "taming and vqdiffusion share a codec" in said
    assert "Not there and not looked at: infinity, rar, var, vqdiffusion." in said
    assert "a match names a family, not a checkpoint" in said
    assert "no evidence" not in trace.statement([trace.opened("taming", profiles.load(), 0.01)], profiles.load(), 0.01)


def test_any_size_and_bad_files(project: Path, tmp_path: Path) -> None:
    save("llamagen")
    save("taming", image_size=32)
    calibrate("llamagen", "combined", [1e9] * 99)
    exact, large, small = (
        picture(tmp_path / name, size=size)
        for name, size in (("exact.png", (16, 16)), ("large.png", (70, 33)), ("small.png", (40, 15)))
    )
    (tmp_path / "text.png").write_bytes(b"not an image")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder").mkdir()
    bad = [tmp_path / name for name in ("text.png", "pipe.png", "folder", "absent.png", "\x1b[31mred.png")]
    images = [str(path) for path in (*bad, exact, large, small)]
    result = run(*images, "--iar", "all", "--json")
    assert result.exit_code == 1
    rows = json.loads(result.stdout)
    assert [Path(row["file"]).name for row in rows] == [Path(name).name for name in images]
    assert all(row["error"] and "models" not in row for row in rows[: len(bad)])
    by_name = {Path(row["file"]).name: {one["model"]: one for one in row["models"]} for row in rows[len(bad) :]}
    assert by_name["exact.png"]["llamagen"]["resampled"] is False
    assert by_name["exact.png"]["llamagen"]["decision"] is True
    assert "16x16 pixels: the model's images are 32x32" in by_name["exact.png"]["taming"]["error"]
    assert by_name["large.png"]["llamagen"]["resampled"] is by_name["large.png"]["taming"]["resampled"] is True
    assert all("error" in one for one in by_name["small.png"].values())
    text = run(*images, "--iar", "all").stdout
    lines: list[str] = []
    trace.echo(rows, lines.append)
    assert "\n".join(lines) + "\n" == text
    assert "\x1b" not in "".join(lines)
    assert "brought to 16 px, which weakens the signal" in text
    assert text.count("not traced") == len(bad)
    assert run(str(small), str(bad[0]), "--iar", "llamagen").exit_code == 2
    assert run(str(exact), "--iar", "llamagen").exit_code == 0


def test_every_signal_is_there_and_search_only_where_it_decides(project: Path, tmp_path: Path) -> None:
    save("var")
    save("llamagen")
    (row,) = json.loads(run(str(picture(tmp_path / "a.png")), "--iar", "all", "--json").stdout)
    found = {one["model"]: one for one in row["models"]}
    paper = {"quant_loss", "enc_loss", "enc_loss_calibrated", "combined"}
    assert set(found["llamagen"]["signals"]["own"]) == set(found["llamagen"]["signals"]["inverse"]) == paper
    assert set(found["var"]["signals"]["own"]) == paper
    assert set(found["var"]["signals"]["inverse"]) == {*paper, "combined_opt"}
    assert found["var"]["signal"] == "combined_opt"
    for one in found.values():
        for values in one["signals"].values():
            assert values["combined"] == pytest.approx(values["quant_loss"] * values["enc_loss_calibrated"])


def test_the_likeliest_family() -> None:
    def rows(**ratios: float | None) -> list[dict[str, Any]]:
        return [{"model": name, "ratio": ratio} for name, ratio in ratios.items()]

    assert trace.likeliest(rows(llamagen=0.5, var=0.2, rar=3.0)) == ["var"]
    assert trace.likeliest(rows(llamagen=1.0, var=1.5)) == []
    assert trace.likeliest(rows(llamagen=0.9, taming=0.3, vqdiffusion=0.4)) == ["taming", "vqdiffusion"]
    assert trace.likeliest(rows(llamagen=0.9, vqdiffusion=0.3)) == ["taming", "vqdiffusion"]
    assert trace.likeliest(rows(llamagen=0.9, var=None)) == ["llamagen"]
    assert trace.likeliest([*rows(llamagen=None), {"model": "var", "error": "too small"}]) is None
    assert trace.likeliest([]) is None


def test_bad_arguments_name_what_there_is(project: Path, tmp_path: Path) -> None:
    photo = str(picture(tmp_path / "a.png"))

    def failed(*arguments: str) -> str:
        result = run(photo, *arguments)
        assert result.exit_code == 2
        assert (result.stdout, "Traceback" in result.stderr) == ("", False)
        return result.stderr

    assert "no model 'vra': there is infinity, llamagen, rar" in failed("--iar", "vra")
    assert "models/small/codebooks is not there" in failed("--iar", "all")
    assert "models/small/codebooks/var is not there" in failed("--iar", "var")
    assert "false-positive rate 1.5" in failed("--iar", "var", "--fpr", "1.5")
    assert "no profile 'smal'" in failed("--iar", "var", "--profile", "smal")
    assert run("--iar", "var").exit_code == 2
