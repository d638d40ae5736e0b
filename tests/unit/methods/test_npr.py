"""NPR against its count, official key names and its residual worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.unit import resnets
from unforge import counts, methods
from unforge.methods import npr


def test_counts_are_published() -> None:
    assert counts.of("npr")[""][0] == 1_437_761
    assert counts.of("npr", "three")[""][0] == 1_437_761 + 2 * 513


def test_official_weights_load_strictly(tmp_path: Path) -> None:
    shapes = resnets.trunk((3, 4), bottleneck=True, kernel=3) | resnets.linear("fc1", 512, 1)
    assert shapes["conv1.weight"] == (64, 3, 3, 3)
    given = resnets.filled(shapes)
    torch.save(given, tmp_path / "NPR.pth")
    method = npr.build(npr.Config(), {})
    npr.load_official(method, tmp_path / "NPR.pth")
    own = method.network.state_dict()
    assert set(own) == set(shapes)
    assert all(torch.equal(own[name], value) for name, value in given.items())
    torch.save({**given, "layer3.0.conv1.weight": torch.zeros(1)}, tmp_path / "NPR.pth")
    with pytest.raises(ValueError, match=r"unexpected: layer3.0.conv1.weight"):
        npr.load_official(method, tmp_path / "NPR.pth")


def test_residual_of_four_by_four() -> None:
    x = torch.tensor([[1.0, 2, 5, 5], [4, 0, 5, 9], [7, 7, 3, 1], [8, 6, 2, 3]])
    expected = torch.tensor([[0.0, 1, 0, 0], [3, -1, 0, 4], [0, 0, 0, -2], [1, -1, -1, 0]])
    assert torch.equal(npr.relations(x[None, None])[0, 0], expected)


def test_residual_is_that_of_nearest_neighbours() -> None:
    x = torch.rand(2, 3, 12, 8)
    down = F.interpolate(x, scale_factor=0.5, mode="nearest", recompute_scale_factor=True)
    up = F.interpolate(down, scale_factor=2.0, mode="nearest", recompute_scale_factor=True)
    found = npr.relations(x)
    torch.testing.assert_close(found, x - up)
    assert (found[:, :, ::2, ::2] == 0).all()
    # odd rows and columns are left out
    assert torch.equal(npr.relations(F.pad(x, (0, 1, 0, 1))), found)


def test_two_thirds_of_it_are_seen() -> None:
    torch.manual_seed(0)
    method = methods.build("npr", methods.config("npr", "", "small")).eval()
    image = torch.rand(1, 3, 32, 32)
    seen = []
    method.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method(image)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    torch.testing.assert_close(seen[0], npr.relations(image) / std * 2 / 3, rtol=1e-4, atol=1e-5)


def test_tests_use_images_as_they_are_and_training_squares() -> None:
    method = npr.build(npr.Config(), {})
    image = torch.rand(1, 3, 60, 90)
    assert tuple(method.eval().prepared(image).shape) == (1, 3, 60, 90)
    torch.manual_seed(0)
    found = method.train().prepared(image)
    assert tuple(found.shape) == (1, 3, 224, 224)
    # a window of the 256 x 256 square, in which proportions are lost
    whole = (F.interpolate(image, size=(256, 256), mode="bilinear", antialias=True) - method.mean) / method.std
    distances = [
        (whole[:, :, y : y + 224, x : x + 224] - found).abs().amax().item() for y in range(33) for x in range(33)
    ]
    assert min(distances) < 0.5 / 255 / 0.22 + 1e-4


@pytest.mark.parametrize("variant", ["", "three"])
def test_small_ones_see_any_image_and_are_saved(tmp_path: Path, variant: str) -> None:
    torch.manual_seed(0)
    config = methods.config("npr", variant, "small")
    method = methods.build("npr", config).eval()
    for height, width in ((1, 1), (1, 5), (7, 301), (256, 256)):
        prediction = method.predict(torch.rand(1, 3, height, width))
        assert 0 < prediction.score.item() < 1
        if variant:
            assert prediction.class_probs.sum().item() == pytest.approx(1)
            assert prediction.score.item() == pytest.approx(1 - prediction.class_probs[0, 0].item())
    methods.save(method, "npr", variant, config, tmp_path)
    image = torch.rand(1, 3, 33, 40)
    assert torch.equal(methods.load(tmp_path)(image), method(image))
