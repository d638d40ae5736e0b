"""What is done to images before their signals are taken, and the files the signals end up in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit.provenance.toys import PatchToy
from unforge import scores, shards
from unforge.provenance import controls, score
from unforge.types import Sample

CPU = torch.device("cpu")


def photograph(seed: int, size: int = 32) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 0.5)


def made(folder: Path, name: str, count: int, size: int, *, origin: str | None = None, split: str = "test") -> Any:
    samples = [
        Sample(
            key=f"{name}-{i}", image=shards.encode_png(photograph(i, size)), extension="png", mask=None,
            label=int(origin is not None), kind="generated" if origin else "authentic", origin=origin,
            source=(f"{name}-{i}",), unit=f"{name}-{i}", split="val" if i % 4 == 0 else split,
        )
        for i in range(count)
    ]  # fmt: skip
    shards.write(folder / name, samples, name=name, data="stand_in", version="1")
    return shards.ShardSet(folder / name)


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("imagenet", ("imagenet", "", 0.0)),
        ("imagenet~jpeg60", ("imagenet", "jpeg", 60.0)),
        ("generated_rar~noise0.05", ("generated_rar", "noise", 0.05)),
        ("imagenet~matched", ("imagenet", "matched", 0.0)),
        ("generated_var~resampled3", ("generated_var", "resampled", 3.0)),
    ],
)
def test_names_say_what_was_done(name: str, parsed: tuple[str, str, float]) -> None:
    assert controls.parse(name) == parsed


@pytest.mark.parametrize("name", ["imagenet~", "imagenet~jpg60", "imagenet~jpeg", "imagenet~matched3", "a~jpeg6_0"])
def test_a_name_that_says_nothing_known_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="after ~ comes one of jpeg"):
        controls.parse(name)


def test_what_is_done_to_an_image_does_not_depend_on_the_others() -> None:
    images = [photograph(i) for i in range(3)]
    together = controls.done(images, ["a", "b", "c"], "x~noise0.05", 0)
    (alone,) = controls.done(images[1:2], ["b"], "x~noise0.05", 0)
    assert np.array_equal(together[1], alone)
    (other,) = controls.done(images[1:2], ["b"], "x~noise0.05", 1)
    assert not np.array_equal(alone, other)
    assert controls.done(images, ["a", "b", "c"], "x", 0)[0] is images[0]
    deviation = (np.stack(together).astype(float) - np.stack(images))[np.stack(images) > 40]
    assert deviation.std() == pytest.approx(255 * 0.05, rel=0.15)


def test_resampled_images_keep_their_size_and_lose_their_pixels() -> None:
    image = photograph(0)
    again = controls.resampled(image, 3)
    assert again.shape == image.shape
    assert not np.array_equal(again, image)
    assert np.abs(again.astype(float) - image).mean() < 25  # still that image
    flat = np.full((32, 32, 3), 77, np.uint8)
    assert np.array_equal(controls.resampled(flat, 3), flat)


def test_sharpness_by_hand() -> None:
    image = np.zeros((5, 5, 3), np.uint8)
    image[2, 2] = 100
    # Laplacian: -400 in the centre, 100 at its four neighbours, of 25 pixels
    assert controls.sharpness([image]) == pytest.approx((400**2 + 4 * 100**2) / 25)


def test_matched_images_are_no_sharper_and_barely_so() -> None:
    like = [cv2.GaussianBlur(photograph(i), (0, 0), 1.1) for i in range(9)]
    images = [photograph(100 + i) for i in range(9)]
    found, sigma = controls.matched(images, like)
    assert controls.sharpness(found) <= controls.sharpness(like) < controls.sharpness(images)
    step = controls.SIGMAS[1]
    before = [cv2.GaussianBlur(image, (0, 0), sigma - step) for image in images]
    assert controls.sharpness(before) > controls.sharpness(like)
    assert np.array_equal(found[0], cv2.GaussianBlur(images[0], (0, 0), sigma))
    same, none = controls.matched(like, images)  # what is blurrier already is left alone
    assert none == 0.0
    assert np.array_equal(same[0], like[0])


def test_images_of_a_set_are_brought_to_size_and_the_small_ones_named(tmp_path: Path) -> None:
    photos = made(tmp_path, "photos", 12, 48)
    found = score.read(photos, "test", 16, None, 0)
    assert len(found.rows) == len(found.pixels) == 9  # every fourth is in split val
    assert {image.shape for image in found.pixels} == {(16, 16, 3)}
    assert [row["key"] for row in found.rows] == sorted(row["key"] for row in found.rows)
    few = score.read(photos, "test", 16, 4, 0)
    assert len(few.rows) == 4
    assert {row["key"] for row in few.rows} < {row["key"] for row in found.rows}
    with pytest.raises(ValueError, match=r"no usable image of split 'test' \(9 refused"):
        score.read(photos, "test", 64, None, 0)
    exact = score.read(made(tmp_path, "own", 4, 16, origin="toy"), "test", 16, None, 0)
    assert np.array_equal(exact.pixels[0], photograph(int(exact.rows[0]["key"].split("-")[1]), 16))


def test_score_files_hold_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = PatchToy()
    sets = {
        "imagenet": made(tmp_path, "imagenet", 12, 48),
        "generated_toy": made(tmp_path, "generated_toy", 8, 16, origin="toy"),
    }
    model = score.Model(name="rar", encoder="own", tokenizer=toy, inverse=None, weights={"codebook": "abc"})  # type: ignore[arg-type]
    testsets = ["generated_toy", "imagenet", "imagenet~jpeg60"]
    out = tmp_path / "out"
    out.mkdir()
    score.write(
        out, "paper/rar/own/s0", model, sets, testsets, {"latent_tracer": ["imagenet"]},
        scale={"images": 5, "costly_images": 2}, said="small", device=CPU, seed=0,
    )  # fmt: skip
    table = scores.read(out / "imagenet.parquet")
    rows = table.to_pylist()
    assert len(rows) == 5
    about = scores.metadata(table)
    assert (about["origin"], about["variant"], about["scale"], about["method"]) == ("rar", "own", "small", "paper")
    assert sum("latent_tracer" in dict(row["signals"]) for row in rows) == 2
    row = rows[0]
    image = score.resample.to_size(sets["imagenet"].image(row["key"]), 16)
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    f = toy.encode(x)
    expected = (f - toy.quantize(f).features).square().mean().item()
    assert dict(row["signals"])["quant_loss"] == pytest.approx(expected, rel=1e-5)
    assert {r["origin"] for r in scores.read(out / "generated_toy.parquet").to_pylist()} == {"toy"}
    jpeg = {r["key"]: dict(r["signals"]) for r in scores.read(out / "imagenet~jpeg60.parquet").to_pylist()}
    assert set(jpeg) == {r["key"] for r in rows}
    assert "latent_tracer" not in next(iter(jpeg.values()))
    assert jpeg[row["key"]]["quant_loss"] != dict(row["signals"])["quant_loss"]
    # photographs of split val, none of them in a score file; no generated image
    calibration = pq.read_table(out / "calibration.parquet").to_pylist()
    assert {r["key"] for r in calibration} == {"imagenet-0", "imagenet-4", "imagenet-8"}
    assert {r["signal"] for r in calibration} == set(score.CHEAP)
    assert not {r["key"] for r in calibration} & {r["key"] for r in rows}


def test_batches_do_not_change_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    toy, pixels = PatchToy(), [photograph(i, 16) for i in range(5)]
    whole = score.measured(toy, None, pixels, ["quant_loss", "enc_loss"], device=CPU)  # type: ignore[arg-type]
    monkeypatch.setattr(score, "BATCH", 2)
    parts = score.measured(toy, None, pixels, ["quant_loss", "enc_loss"], device=CPU)  # type: ignore[arg-type]
    for left, right in zip(whole, parts, strict=True):
        assert left == pytest.approx(right, rel=1e-5)


def test_the_costly_subset_is_the_same_for_every_run() -> None:
    keys = [f"k{i}" for i in range(50)]
    assert score.chosen(keys, 10, 0) == score.chosen(reversed(keys), 10, 0)
    assert score.chosen(keys, 10, 0) < score.chosen(keys, 20, 0)
    assert score.chosen(keys, None, 0) == set(keys)
