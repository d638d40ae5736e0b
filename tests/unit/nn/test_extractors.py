"""Extractors against scipy and against what their papers say of them."""

import numpy as np
import pytest
import scipy.fft
import torch

from unforge.nn.extractors import EXTRACTORS, Bayar, DCTHighPass, Sobel, srm_kernels


@pytest.mark.parametrize("name", sorted(EXTRACTORS))
@pytest.mark.parametrize("size", [(24, 40), (37, 51), (1, 1)])
def test_keeps_the_size_and_has_as_many_maps_as_it_says(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    extractor = EXTRACTORS[name]()
    maps = extractor(torch.rand(2, 3, *size))
    assert maps.shape == (2, extractor.maps, *size)
    assert torch.isfinite(maps).all()


@pytest.mark.parametrize("name", ["sobel", "dct", "srm"])
def test_a_flat_image_has_no_traces(name: str) -> None:
    maps = EXTRACTORS[name]()(torch.full((1, 3, 16, 20), 0.7))
    assert maps.abs().max() < 1e-3


@pytest.mark.parametrize("name", ["sobel", "dct", "srm", "stem"])
def test_each_map_sees_its_own_colour_only(name: str) -> None:
    torch.manual_seed(0)
    extractor = EXTRACTORS[name]()
    image = torch.rand(1, 3, 16, 16) / 100
    changed = image.clone()
    changed[:, 1] += torch.rand(16, 16) / 100
    moved = (extractor(image) - extractor(changed)).abs().amax(dim=(0, 2, 3)) > 1e-6
    per_colour = extractor.maps // 3
    assert moved.tolist() == [False] * per_colour + [True] * per_colour + [False] * per_colour


def test_dct_high_pass_zeroes_the_lowest_quarter_and_keeps_the_rest() -> None:
    image = np.random.default_rng(0).random((1, 3, 16, 24))
    expected = scipy.fft.dctn(image, axes=(2, 3), norm="ortho")
    expected[:, :, :4, :6] = 0
    result = DCTHighPass()(torch.from_numpy(image).float()).numpy()
    np.testing.assert_allclose(scipy.fft.dctn(result, axes=(2, 3), norm="ortho"), expected, atol=1e-5)


def test_bayar_keeps_its_constraint_after_training() -> None:
    torch.manual_seed(0)
    bayar = Bayar()
    optimiser = torch.optim.SGD(bayar.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        bayar(torch.rand(1, 3, 12, 12)).square().mean().backward()
        optimiser.step()
    kernels = bayar.kernels()
    torch.testing.assert_close(kernels[:, :, 2, 2], -torch.ones(3, 3))
    torch.testing.assert_close(kernels.sum((2, 3)), torch.zeros(3, 3), atol=1e-5, rtol=0)


def test_sobel_measures_the_slope_of_a_ramp() -> None:
    ramp = torch.arange(10.0).repeat(3, 8, 1)[None] / 10
    torch.testing.assert_close(Sobel()(ramp)[:, :, :, 1:-1], torch.full((1, 3, 8, 8), 0.2), atol=1e-3, rtol=0)


def test_srm_filters_annihilate_ramps() -> None:
    kernels = srm_kernels()
    grid = torch.arange(5.0)
    for ramp in (torch.ones(5, 5), grid.repeat(5, 1), grid[:, None].repeat(1, 5)):
        torch.testing.assert_close((kernels * ramp).sum((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
