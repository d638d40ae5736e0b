"""Homogeneity against scikit-image, LatentTracer against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.feature import graycomatrix, graycoprops

from tests.unit.provenance import toys
from unforge.provenance import baselines, signals
from unforge.provenance.config import TRACERS, Tracer


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


@given(st.integers(0, 2**20), st.integers(1, 9), st.integers(2, 9), st.sampled_from([1, 30, 255]))
@settings(max_examples=60, deadline=None)
def test_homogeneity_is_scikit_images(seed: int, height: int, width: int, spread: int) -> None:
    image = np.random.default_rng(seed).integers(0, spread + 1, (height, width, 3), dtype=np.uint8)
    reduced = (np.asarray(Image.fromarray(image).convert("L")) / 8).astype(np.uint8)
    matrix = graycomatrix(reduced, distances=[1], angles=[0], levels=32, symmetric=True, normed=True)
    expected = float(graycoprops(matrix, "homogeneity")[0, 0])
    assert float(baselines.homogeneity(tensor(image))) == pytest.approx(expected, rel=1e-12)
    i, j = np.indices((32, 32))
    printed = float((matrix[:, :, 0, 0] / (1 + np.abs(i - j))).sum())
    assert float(baselines.homogeneity(tensor(image), power=1)) == pytest.approx(printed, rel=1e-12)


def test_homogeneity_of_photographs_and_of_plain_images() -> None:
    photos = toys.photographs(64)
    found = baselines.homogeneity(photos)
    assert ((found > 0.1) & (found < 1)).all()
    assert baselines.homogeneity(torch.full((2, 3, 5, 5), 0.4)).tolist() == [1, 1]
    assert baselines.homogeneity(photos).argsort()[-1] in baselines.homogeneity(photos, 1).argsort()[-3:]
    with pytest.raises(ValueError, match="1 pixel wide"):
        baselines.homogeneity(torch.rand(1, 3, 5, 1))


def test_grey_is_pillows() -> None:
    photos = toys.photographs(48)
    for photo in photos:
        image = Image.fromarray(photo.permute(1, 2, 0).mul(255).round().byte().numpy())
        assert np.array_equal(baselines.grey(photo[None])[0].numpy(), np.asarray(image.convert("L")))


def test_aedr_with_and_without_the_homogeneity_term() -> None:
    toy, photos = toys.ConvToy(), toys.photographs(16)
    found = signals.measure(toy, photos, ["enc_loss_calibrated", "aedr_homogeneity"])
    expected = found["enc_loss_calibrated"] * baselines.homogeneity(photos)
    torch.testing.assert_close(found["aedr_homogeneity"], expected)


def traced(toy: toys.ConvToy, photo: torch.Tensor, settings: Tracer) -> list[float]:
    """Errors of every step for one image, as it reads."""
    with torch.no_grad():
        begin = toy.encode(photo)
        begin = begin if settings.begin == "encoded" else toy.quantize(begin).features
    latent = torch.nn.Parameter(begin.clone(memory_format=torch.contiguous_format))
    optimise, errors = torch.optim.Adam([latent], lr=settings.lr), []
    for step in range(settings.iterations):
        optimise.zero_grad()
        error = torch.nn.functional.mse_loss(toy.decode(latent).clamp(0, 1), photo)
        error.backward()
        optimise.step()
        errors.append(error.item())
        if step + 1 in settings.halve:
            optimise.param_groups[0]["lr"] *= 0.5
    return errors


@pytest.mark.parametrize("name", sorted(TRACERS))
def test_latent_tracer_is_a_plain_loop(name: str) -> None:
    toy, photos = toys.ConvToy(), toys.photographs(16, 4)
    found = signals.measure(toy, photos, ["latent_tracer"], tracer=TRACERS[name])["latent_tracer"]
    for i in range(len(photos)):
        errors = traced(toy, photos[i : i + 1], TRACERS[name])
        expected = errors[-1] if TRACERS[name].score == "last" else min(errors)
        assert float(found[i]) == pytest.approx(expected, rel=1e-3)


def test_both_schedules_halve_where_they_say() -> None:
    """`release` after 50 and 100 steps; `script` at i % 50 == 0, which is after the first step and after the 51st."""
    assert TRACERS["release"].halve == (50, 100)
    assert TRACERS["script"].halve == (1, 51)
    toy, photo = toys.ConvToy(), toys.photographs(16, 1)
    release, script = (traced(toy, photo, TRACERS[name]) for name in ("release", "script"))
    assert release[:2] == script[:2]
    assert release[2] < script[2]
    assert release[-1] != script[-1]


def test_latent_tracer_begins_where_it_is_told_and_comes_nearer() -> None:
    toy, photos = toys.ConvToy(), toys.photographs(16)
    found = signals.measure(toy, photos, ["reconstruction", "enc_loss"])
    for begin, start in (("quantized", "reconstruction"), ("encoded", "enc_loss")):
        one = signals.measure(toy, photos, ["latent_tracer"], tracer=Tracer(iterations=1, begin=begin))
        torch.testing.assert_close(one["latent_tracer"], found[start])
        more = signals.measure(toy, photos, ["latent_tracer"], tracer=Tracer(iterations=40, begin=begin))
        assert (more["latent_tracer"] < found[start]).all()
