"""FreDect against its counts, official key names, scipy's cosine transform and statistics by numpy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor

from tests.unit import resnets
from unforge import counts, methods
from unforge.methods import fredect
from unforge.nn.detector import View
from unforge.types import Batch


def batch(image: Tensor) -> Batch:
    names = tuple(map(str, range(len(image))))
    return Batch(
        image=image,
        mask=None,
        label=torch.arange(len(image)) % 2,
        key=names,
        unit=names,
        source=tuple((name,) for name in names),
    )


def small(variant: str = "", size: int = 16) -> fredect.FreDect:
    torch.manual_seed(0)
    config = methods.config("fredect", variant, "small")
    return fredect.build(replace(config, view=View(crop=size)), {})


def expected(image: Tensor) -> np.ndarray:
    """The log transform of (B,3,n,n) in [0,1], by scipy."""
    transform = scipy.fft.dctn(image.double().numpy() * 255, axes=(2, 3), norm="ortho")
    return np.log(np.abs(transform) + 1e-12)


def test_counts_are_published() -> None:
    assert counts.of("fredect")[""][0] == 23_510_081
    # 128 * 128 * 3 + 1
    assert counts.of("fredect", "ridge")[""][0] == 49_153


def test_the_transform_is_orthonormal() -> None:
    # the mean times 2, halves of differences: by hand
    found = fredect.cosine_transform(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    torch.testing.assert_close(found, torch.tensor([[6.0, -2.0], [-3.0, 1.0]], dtype=torch.float64))
    for size in (7, 16, 224):
        image = torch.rand(2, 3, size, size)
        found = fredect.cosine_transform(image)
        reference = scipy.fft.dctn(image.double().numpy(), axes=(2, 3), norm="ortho")
        np.testing.assert_allclose(found.numpy(), reference, rtol=0, atol=1e-10)
        assert found.square().sum().item() == pytest.approx(image.double().square().sum().item(), rel=1e-9)


def test_a_coefficient_of_zero_is_the_log_of_epsilon() -> None:
    found = fredect.log_transform(torch.full((1, 3, 8, 8), 128.0))
    assert found[0, 0, 0, 0].item() == pytest.approx(math.log(8 * 128), rel=1e-6)
    # what is left of 0 in float64 is less than a tenth of epsilon
    assert found[0, :, 1:].max().item() < math.log(1.5e-12)
    assert found[0, :, 1:].min().item() >= math.log(1e-12) - 1e-5


def test_each_coefficient_is_standardised_over_the_training_images() -> None:
    method = small().train()
    images = torch.rand(10, 3, 16, 16)
    first = method.prepared(images[:4])
    logs = expected(images)
    z = (logs[:4] - logs[:4].mean(0)) / logs[:4].std(0)
    np.testing.assert_allclose(first.numpy(), z, rtol=1e-3, atol=1e-3)
    method.prepared(images[4:9])
    method.prepared(images[9:])
    np.testing.assert_allclose(method.dct_mean.numpy(), logs.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(method.dct_var.numpy(), logs.var(0), rtol=1e-3, atol=1e-4)
    assert method.seen_images == 10
    # tests and validation add nothing
    method.eval()
    other = torch.rand(3, 3, 16, 16)
    z = (expected(other) - logs.mean(0)) / logs.std(0)
    np.testing.assert_allclose(method.prepared(other).numpy(), z, rtol=2e-3, atol=2e-3)
    method.predict(other)
    method.loss(batch(other))
    assert method.seen_images == 10
    np.testing.assert_allclose(method.dct_mean.numpy(), logs.mean(0), rtol=1e-4, atol=1e-4)


def test_the_centre_is_seen_in_training_too() -> None:
    method = small()
    image = torch.rand(1, 3, 30, 24)
    logs = expected(image[:, :, 7:23, 4:20])
    np.testing.assert_allclose(method.eval().prepared(image).numpy(), logs, rtol=1e-4, atol=1e-4)
    method.train().prepared(image)
    np.testing.assert_allclose(method.dct_mean[None].numpy(), logs, rtol=1e-4, atol=1e-4)
    # at paper scale the shorter side is 256 first
    assert fredect.Config().view == View(side=256, crop=224)


def test_a_single_image_is_no_division_by_zero() -> None:
    method = small().train()
    found = method.prepared(torch.rand(1, 3, 16, 16))
    assert (found == 0).all()
    assert torch.isfinite(method.eval().prepared(torch.rand(1, 3, 16, 16))).all()


def test_official_weights_load_strictly(tmp_path: Path) -> None:
    shapes = resnets.trunk((3, 4, 6, 3), bottleneck=True) | resnets.linear("fc", 2048, 1)
    given = resnets.filled(shapes)
    files = [tmp_path / name for name in ("dct.pth", "dct_mean", "dct_var")]
    mean, var = torch.rand(3, 224, 224), torch.rand(3, 224, 224)
    for file, content in zip(files, ({"netC": given}, mean, var), strict=True):
        torch.save(content, file)
    method = fredect.build(fredect.Config(), {})
    fredect.load_official(method, *files)
    own = method.network.state_dict()
    assert set(own) == set(shapes)
    assert all(torch.equal(own[name], value) for name, value in given.items())
    assert torch.equal(method.dct_mean, mean)
    assert torch.equal(method.dct_var, var)
    torch.save(mean[:, :128, :128], files[1])
    with pytest.raises(ValueError, match=r"statistics of \(3, 128, 128\)"):
        fredect.load_official(method, *files)
    with pytest.raises(ValueError, match="Keras"):
        fredect.load_official(fredect.build(methods.config("fredect", "ridge"), {}), *files)


def test_ridge_adds_its_squared_weights() -> None:
    method = small("ridge")
    assert method.config.ridge == 0.01
    losses = method.loss(batch(torch.rand(4, 3, 16, 16)))
    squares = method.network.weight.square().sum().item()
    assert losses.terms["ridge"].item() == pytest.approx(squares)
    assert losses.total.item() == pytest.approx(losses.terms["bce"].item() + 0.01 * squares)


@pytest.mark.parametrize("variant", ["", "three", "ridge"])
def test_small_ones_see_any_image_and_are_saved(tmp_path: Path, variant: str) -> None:
    torch.manual_seed(0)
    config = methods.config("fredect", variant, "small")
    method = methods.build("fredect", config).train()
    method.prepared(torch.rand(4, 3, 90, 90))
    method.eval()
    for height, width in ((1, 1), (7, 300), (256, 256)):
        assert 0 <= method.predict(torch.rand(1, 3, height, width)).score.item() <= 1
    methods.save(method, "fredect", variant, config, tmp_path)
    image = torch.rand(1, 3, 200, 190)
    loaded = methods.load(tmp_path)
    assert torch.equal(loaded(image), method(image))
    assert loaded.seen_images == 4


def test_a_transform_needs_a_size() -> None:
    with pytest.raises(ValueError, match=r"view.crop"):
        fredect.build(replace(fredect.Config(), view=View()), {})
