"""Regions, blending, the camera and crops."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from unforge.forgeries.steps import blending, camera, photographs, regions
from unforge.types import StandIn


@pytest.mark.parametrize("shape", ["blob", "polygon"])
@pytest.mark.parametrize("area", [0.004, 0.05, 0.25, 0.4])
def test_regions_have_their_area(shape: str, area: float) -> None:
    rng = np.random.default_rng(0)
    shares = [regions.draw(shape, 128, area, rng).mean() for _ in range(40)]
    assert np.mean(shares) == pytest.approx(area, rel=0.12)
    assert min(shares) > 0.5 * area
    assert max(shares) < 1.2 * area


@pytest.mark.parametrize("size", [64, 100, 255, 512])
def test_blobs_are_one_piece_at_any_size(size: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        blob = regions.blob(size, 0.1, rng)
        assert blob.shape == (size, size)
        assert ndimage.label(blob)[1] == 1


@pytest.mark.parametrize("shape", ["blob", "polygon"])
@pytest.mark.parametrize("area", [0.01, 0.1, 0.3])
def test_being_near_the_centre_says_nothing(shape: str, area: float) -> None:
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:64, :64] - 31.5
    prior = -np.hypot(x, y).ravel()
    values = [roc_auc_score(regions.draw(shape, 64, area, rng).ravel(), prior) for _ in range(300)]
    assert 0.42 < np.mean(values) < 0.58


def test_unknown_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        regions.draw("square", 64, 0.1, np.random.default_rng(0))


def test_polygons_are_filled_to_their_pixels() -> None:
    inside = regions.rasterise([[2, 3, 10, 3, 10, 7, 2, 7]], 12, 16)
    expected = np.zeros((12, 16), bool)
    expected[3:7, 2:10] = True
    assert (inside != expected).sum() <= 13  # half-covered pixels on two sides
    assert inside[3:7, 2:10].all()
    both = regions.rasterise([[0, 0, 4, 0, 4, 4, 0, 4], [8, 8, 12, 8, 12, 12, 8, 12]], 16, 16)
    assert both[2, 2]
    assert both[10, 10]
    assert not both[6, 6]


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 2.0])
def test_softening_ends(sigma: float) -> None:
    region = np.zeros((64, 64), bool)
    region[20:40, 25:50] = True
    opacity = blending.soften(region, sigma)
    distance = ndimage.distance_transform_cdt(~region, "chessboard")
    assert not opacity[distance > np.ceil(3 * sigma)].any()
    assert np.allclose(opacity[30, 37], 1, atol=1e-6)
    assert opacity.sum() == pytest.approx(region.sum(), rel=1e-5)


def test_colour_match_moves_the_mean(image: np.ndarray, donor: np.ndarray) -> None:
    region = regions.blob(128, 0.2, np.random.default_rng(0))
    matched = blending.match_colour(donor, image, region)
    assert np.allclose(matched[region].mean(0), image[region].mean(0), atol=1e-2)
    assert np.allclose(matched - donor, (matched - donor)[0, 0], atol=1e-4)


def test_paste_without_match_keeps_the_contents_colour(image: np.ndarray, donor: np.ndarray) -> None:
    recipe = StandIn(kinds={"splice": 1.0}, split="test", feather=(0.0, 0.0))
    region = regions.blob(128, 0.2, np.random.default_rng(0))
    forged, done = blending.paste(image, donor, region, recipe, np.random.default_rng(0), match=False)
    assert done == {"feather": 0.0, "colour_matched": False}
    assert np.array_equal(forged, np.where(region[..., None], donor, image))


def test_blur_smooths(image: np.ndarray) -> None:
    assert np.array_equal(blending.blur(image, 0.0), image)
    assert blending.blur(image, 2.0).std() < image.std()


@pytest.mark.parametrize("value", [40, 128, 215])
def test_sensor_noise_grows_with_light(value: int) -> None:
    image = np.full((200, 200, 3), value, np.uint8)
    noise = camera.sensor_noise(image, 3.0, np.random.default_rng(0)).astype(float) - value
    assert abs(noise.mean()) < 0.06
    assert noise.var() == pytest.approx(9 * (0.5 + value / 255) + 1 / 12, rel=0.03)


def test_post_processing_noise() -> None:
    image = np.full((200, 200, 3), 100, np.uint8)
    assert camera.noise(image, 2.0, np.random.default_rng(0)).std() == pytest.approx(np.sqrt(4 + 1 / 12), rel=0.02)


def test_exposure_is_recorded_and_reproducible(image: np.ndarray) -> None:
    qualities = []
    for seed in range(30):
        first, done = camera.expose(image, np.random.default_rng(seed))
        cv2.randu(np.empty((3, 3), np.uint8), 0, 255)
        second, _ = camera.expose(image, np.random.default_rng(seed))
        assert np.array_equal(first, second)
        assert camera.SENSOR[0] <= done["sensor_sigma"] <= camera.SENSOR[1]
        qualities.append(done["camera_quality"])
    given = [quality for quality in qualities if quality is not None]
    assert 5 < len(given) < 25
    assert min(given) >= 88
    assert max(given) <= 97


def test_compression_is_pillows(image: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=70)
    assert np.array_equal(camera.compress(image, 70), np.asarray(Image.open(stream)))


@pytest.mark.parametrize(("extension", "form"), [("jpg", "JPEG"), ("png", "PNG"), ("tif", "TIFF")])
def test_files_are_what_they_say(image: np.ndarray, extension: str, form: str) -> None:
    data = camera.save(image, extension, 90)
    opened = Image.open(io.BytesIO(data))
    assert opened.format == form
    assert data == camera.save(image, extension, 90)
    if extension != "jpg":
        assert np.array_equal(np.asarray(opened), image)


def test_other_files_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="gif"):
        camera.save(image, "gif", 90)


def test_resampling(image: np.ndarray) -> None:
    assert camera.resample(image, 128) is image
    assert camera.resample(image, 100).shape == (100, 100, 3)


def test_blank_walls_have_no_texture(image: np.ndarray) -> None:
    assert photographs.texture(np.full((64, 64, 3), 90, np.uint8)) == 0
    assert photographs.texture(np.full((64, 64, 3), 255, np.uint8)) == 0
    assert photographs.texture(image) > 0.8
