"""Perturbations against Pillow, scipy and the normal distribution."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats

from unforge import perturbations, seeds, shards


def picture(height: int = 61, width: int = 83) -> np.ndarray:
    rng = np.random.default_rng(5)
    smooth = ndimage.gaussian_filter(rng.uniform(0, 255, (height, width, 3)), (4, 4, 0))
    return np.clip((smooth - smooth.mean()) * 6 + 128 + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def rng(key: str = "image") -> np.random.Generator:
    return seeds.generator(0, key, "perturbation")


def test_names_are_the_files() -> None:
    assert perturbations.names() == ["blur", "jpeg", "noise", "resize"]
    with pytest.raises(ValueError, match="jpeg"):
        perturbations.load("jpg")


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("casia1", "jpeg", 70), "casia1~jpeg70"),
        (("def12k", "noise", 5), "def12k~noise5"),
        (("casia1", "resize", 0.75), "casia1~resize0_75"),
        (("casia1", "resize", 0.5), "casia1~resize0_5"),
    ],
)
def test_name_and_parse(parts: tuple[str, str, float], text: str) -> None:
    assert perturbations.name(*parts) == text
    assert perturbations.parse(text) == parts
    assert "." not in text


@given(st.sampled_from(["a", "casia1", "x_2"]), st.integers(1, 99999) | st.integers(1, 9999).map(lambda n: n / 1000))
def test_names_come_back(testset: str, level: int | float) -> None:
    assert perturbations.parse(perturbations.name(testset, "noise", level)) == (testset, "noise", level)


@pytest.mark.parametrize(
    "text", ["casia1", "casia1~jpeg", "casia1~70", "Casia~jpeg70", "casia1~jpeg0.5", "~jpeg70", ""]
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a perturbed test set"):
        perturbations.parse(text)


@pytest.mark.parametrize("level", [-5, 1e-9, 1 / 3])
def test_levels_without_a_name_are_refused(level: float) -> None:
    with pytest.raises(ValueError, match="make no name"):
        perturbations.name("casia1", "noise", level)


@pytest.mark.parametrize("family", perturbations.names())
def test_every_level_keeps_shape_type_and_input(family: str) -> None:
    module, image = perturbations.load(family), picture()
    before = image.copy()
    for level in module.LEVELS:
        result = module.apply(image, level, rng())
        assert result.shape == image.shape
        assert result.dtype == np.uint8
        assert np.array_equal(image, before)
        assert np.array_equal(result, module.apply(image, level, rng()))
        data, extension = perturbations.encode(family, image, level, rng())
        assert extension == ("jpg" if family == "jpeg" else "png")
        assert np.array_equal(shards.decode_image(data), result)


@pytest.mark.parametrize("family", perturbations.names())
def test_stronger_levels_change_more(family: str) -> None:
    module, image = perturbations.load(family), picture()
    weak, strong = module.LEVELS[0], module.LEVELS[-1]
    changed = [np.abs(module.apply(image, level, rng()).astype(float) - image).mean() for level in (weak, strong)]
    assert changed[0] < changed[1]


@pytest.mark.parametrize(
    ("family", "level"),
    [("jpeg", 0), ("jpeg", 101), ("jpeg", 70.5), ("blur", 4), ("blur", 1), ("noise", 0), ("resize", 0), ("resize", 1)],
)
def test_levels_out_of_range_are_refused(family: str, level: float) -> None:
    with pytest.raises(ValueError, match=str(level)):
        perturbations.load(family).apply(picture(), level, rng())


@pytest.mark.parametrize("quality", [1, 50, 60, 70, 80, 90, 100])
def test_jpeg_is_pillows(quality: int) -> None:
    image, stream = picture(), io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    data, _ = perturbations.load("jpeg").encode(image, quality, rng())
    ours, theirs = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(stream.getvalue()))
    assert ours.quantization == theirs.quantization  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize(("colour", "luma"), [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)])
def test_jpeg_weighs_the_channels_as_rgb(colour: tuple[int, int, int], luma: int) -> None:
    image = np.full((32, 32, 3), colour, np.uint8)
    data, _ = perturbations.load("jpeg").encode(image, 100, rng())
    stored = Image.open(io.BytesIO(data))
    stored.draft("YCbCr", stored.size)
    assert stored.mode == "YCbCr"
    assert abs(int(np.asarray(stored)[16, 16, 0]) - luma) <= 1


@pytest.mark.parametrize("kernel", [3, 7, 23])
def test_blur_is_a_gaussian(kernel: int) -> None:
    image = picture()
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    offsets = np.arange(kernel) - kernel // 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    expected = image.astype(float)
    for axis in (0, 1):
        expected = ndimage.convolve1d(expected, weights, axis=axis, mode="mirror")
    assert np.abs(perturbations.load("blur").apply(image, kernel, rng()) - expected).max() < 1.5


@pytest.mark.parametrize("variance", [3, 5, 10, 23])
def test_noise_is_rounded_gaussian(variance: float) -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    noise = perturbations.load("noise").apply(image, variance, rng()).astype(int) - 128
    assert abs(noise.mean()) < 4 * np.sqrt((variance + 1 / 12) / noise.size)
    assert noise.var() == pytest.approx(variance + 1 / 12, rel=0.02)
    edge = int(3 * variance**0.5)
    steps = np.arange(-edge, edge)
    bounds = np.concatenate([[-np.inf], steps + 0.5, [np.inf]])
    expected = np.diff(stats.norm.cdf(bounds, scale=variance**0.5)) * noise.size
    counts = np.bincount(np.clip(noise, -edge, edge).ravel() + edge, minlength=len(expected))
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_noise_is_independent_of_place_channel_and_image() -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    module = perturbations.load("noise")
    one, other = (module.apply(image, 23, rng(key)).astype(float) - 128 for key in ("a", "b"))
    for left, right in [
        (one, other),
        (one[..., 0], one[..., 1]),
        (one[..., 1], one[..., 2]),
        (one[1:], one[:-1]),
        (one[:, 1:], one[:, :-1]),
    ]:
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 4 / np.sqrt(left.size)


def test_noise_is_clipped_not_wrapped() -> None:
    black = np.zeros((200, 300, 3), np.uint8)
    module = perturbations.load("noise")
    assert module.apply(black, 23, rng()).mean() == pytest.approx(23**0.5 / np.sqrt(2 * np.pi), rel=0.03)
    assert module.apply(black + 255, 23, rng()).min() > 220


def test_noise_ignores_opencvs_generator() -> None:
    import cv2

    image, module = picture(), perturbations.load("noise")
    cv2.setRNGSeed(1)
    first = module.apply(image, 5, rng())
    cv2.setRNGSeed(2)
    assert np.array_equal(first, module.apply(image, 5, rng()))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.5, 0.75, 0.1]))
def test_resize_gives_the_size_back_and_keeps_flat_colour(height: int, width: int, factor: float) -> None:
    image = np.full((height, width, 3), (10, 200, 90), np.uint8)
    assert np.array_equal(perturbations.load("resize").apply(image, factor, rng()), image)


def test_resize_keeps_what_is_smooth() -> None:
    wave = 128 + 100 * np.sin(np.arange(200) / 12)
    image = np.repeat(np.repeat(wave[None, :, None], 50, 0), 3, 2).astype(np.uint8)
    result = perturbations.load("resize").apply(image, 0.5, rng())
    assert np.abs(result[:, 5:-5].astype(float) - image[:, 5:-5]).max() <= 3
