"""A suspicious image at the model's size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unforge.provenance import resample


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_of_the_models_size_is_untouched() -> None:
    image = noise(32, 32)
    before = image.copy()
    assert resample.to_size(image, 32) is image
    np.testing.assert_array_equal(image, before)


def test_the_centre_is_kept_at_its_scale_when_only_the_longer_side_is_larger() -> None:
    image = noise(8, 20)
    np.testing.assert_array_equal(resample.to_size(image, 8), image[:, 6:14])
    np.testing.assert_array_equal(resample.to_size(image.transpose(1, 0, 2), 8), image.transpose(1, 0, 2)[6:14])


def test_reduction_averages_and_does_not_alias() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # every second column: taking pixels without averaging gives 0 or 255
    reduced = resample.to_size(stripes, 16)
    assert reduced.shape == (16, 16, 3)
    assert reduced.dtype == np.uint8
    assert np.abs(reduced[:, 2:-2].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (96, 50)])
def test_it_is_the_antialiased_bilinear_reduction(shape: tuple[int, int]) -> None:
    size, image = 16, noise(*shape)
    side = min(shape)
    top, left = ((length - side) // 2 for length in shape)
    centre = torch.from_numpy(image[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(centre, size=(size, size), mode="bilinear", antialias=True)
    difference = resample.to_size(image, size).astype(float) - expected[0].permute(1, 2, 0).numpy()
    assert np.abs(difference[1:-1, 1:-1]).max() <= 1  # at the edge of the crop, what lies beyond it counts too


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"40x31 pixels: the model's images are 32x32"):
        resample.to_size(noise(31, 40), 32)
    for wrong in (noise(32, 32)[..., 0], noise(32, 32) / 255, noise(32, 32)[..., :2]):
        with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 is needed"):
            resample.to_size(wrong, 16)
