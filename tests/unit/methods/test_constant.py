"""The constant baselines."""

import pytest
import torch

from unforge import methods


def predict(variant: str, height: int, width: int) -> torch.Tensor:
    method = methods.build("constant", methods.config("constant", variant, "small"))
    return method.predict(torch.rand(2, 3, height, width)).mask


def test_all_calls_every_pixel_manipulated() -> None:
    mask = predict("all", 5, 7)
    assert mask.shape == (2, 1, 5, 7)
    assert (mask > 0.5).all()


def test_centre_falls_off_smoothly_and_covers_a_fifth() -> None:
    mask = predict("centre", 200, 300)
    assert (mask > 0.5).float().mean().item() == pytest.approx(torch.pi / 16, abs=0.005)
    row = mask[0, 0, 100, 150:]
    assert (row.diff() < 0).all()
    torch.testing.assert_close(mask, mask.flip(2))
    torch.testing.assert_close(mask, mask.flip(3))


def test_the_image_does_not_matter() -> None:
    assert torch.equal(predict("centre", 9, 4), predict("centre", 9, 4))
