"""Gram-Net against its counts, official key names and a Gram matrix worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit import resnets
from unforge import counts, methods
from unforge.methods import gramnet
from unforge.nn import detector


def official(outputs: int) -> resnets.Shapes:
    """Names and shapes of the released network."""
    shapes = resnets.trunk((2, 2, 2, 2), bottleneck=False)
    assert "layer1.0.downsample.0.weight" not in shapes
    for name, channels in zip(("i", "0", "1", "2", "3", "4"), (3, 64, 64, 64, 128, 256), strict=True):
        first = f"conv_inter{name}_0"
        second, third = ("g_fc1r", "g_fc2r") if name == "1" else (f"g{name}_fc1", f"g{name}_fc2")
        for part, above, below in ((first, 32, channels), (second, 16, 1), (third, 32, 16)):
            shapes |= {f"{part}.0.weight": (above, below, 3, 3), **resnets.norm(f"{part}.1", above)}
    shapes["scale.scale"] = (1,)
    return shapes | resnets.linear("fcnewr.0", 704, 512) | resnets.linear("fcnewr.3", 512, outputs)


def test_counts_are_published() -> None:
    assert counts.of("gramnet")[""][0] == 11_734_723
    assert counts.of("gramnet", "benchmark")[""][0] == 11_734_210
    assert counts.of("gramnet", "three")[""][0] == 11_734_723 + 513


@pytest.mark.parametrize(("variant", "outputs", "wrapper"), [("", 2, "state_dict"), ("benchmark", 1, "netC")])
def test_official_weights_load_strictly(tmp_path: Path, variant: str, outputs: int, wrapper: str) -> None:
    given = resnets.filled(official(outputs))
    given["fcnewr.3.weight"] = torch.rand(outputs, 512)
    given["fcnewr.3.bias"] = torch.rand(outputs)
    prefix = "module." if wrapper == "netC" else ""
    path = tmp_path / "gram.pth"
    torch.save({wrapper: {prefix + name: value for name, value in given.items()}}, path)
    method = gramnet.build(methods.config("gramnet", variant), {})
    gramnet.load_official(method, path)
    own = method.network.state_dict()
    assert set(own) == set(given)
    # released outputs are fake, real
    turned = {name: value.flip(0) if name.startswith("fcnewr.3.") else value for name, value in given.items()}
    assert all(torch.equal(own[name], turned[name]) for name in own)
    torch.save({name: value for name, value in given.items() if name != "scale.scale"}, path)
    with pytest.raises(ValueError, match=r"missing: scale.scale"):
        gramnet.load_official(method, path)


def test_gram_matrix_of_two_by_two() -> None:
    # channels (1, 2, 3, 4) and (0, 1, 0, -1): products 30, -2, 2, over 2 * 2 * 2
    x = torch.tensor([[[[1.0, 2], [3, 4]], [[0.0, 1], [0, -1]]]])
    assert gramnet.gram_matrix(x).tolist() == [[[[30 / 8, -2 / 8], [-2 / 8, 2 / 8]]]]
    x = torch.rand(3, 5, 6, 4)
    found = gramnet.gram_matrix(x)
    assert found.shape == (3, 1, 5, 5)
    torch.testing.assert_close(found, found.transpose(2, 3))
    by_hand = torch.einsum("bchw,bdhw->bcd", x, x) / (5 * 6 * 4)
    torch.testing.assert_close(found[:, 0], by_hand)


def test_the_blocks_look_at_six_maps() -> None:
    torch.manual_seed(0)
    method = gramnet.build(methods.config("gramnet", "", "small"), {}).eval()
    seen = {}
    for first, _, _ in gramnet.NAMES:
        layer = method.network.get_submodule(first)
        layer.register_forward_pre_hook(lambda module, inputs, first=first: seen.update({first: inputs[0]}))
    image = torch.rand(1, 3, 64, 64)
    method(image)
    maps = method.network.maps(method.prepared(image))
    for (first, _, _), expected in zip(gramnet.NAMES, [method.prepared(image), *maps[:5]], strict=True):
        assert torch.equal(seen[first], expected)
    # one factor for all six
    method.network.scale.scale.data.zero_()
    assert not torch.equal(method(image), method(image * 0.5))
    head = method.network.fcnewr(torch.cat([maps[-1].mean((2, 3)), torch.zeros(1, 6 * method.config.gram)], 1))
    torch.testing.assert_close(method(image), head)


def test_the_original_sees_bytes_in_the_order_blue_green_red() -> None:
    method = gramnet.build(methods.config("gramnet", "", "small"), {}).eval()
    image = torch.tensor([0.2, 0.4, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    torch.testing.assert_close(method.prepared(image)[0, :, 0, 0], torch.tensor([255.0, 102.0, 51.0]))


def test_sizes_of_the_original() -> None:
    with torch.device("meta"):
        method = gramnet.build(gramnet.Config(), {})
    image = torch.rand(3, 3, 300, 400)
    found = method.eval().prepared(image)
    assert tuple(found.shape) == (3, 3, 512, 512)
    torch.testing.assert_close(found, 255 * detector.resized(image, 512, True).flip(1))
    # in training fine structure is lost first, more of it in smaller squares
    torch.manual_seed(0)
    shown = method.train().prepared(image)
    assert tuple(shown.shape) == (3, 3, 512, 512)
    rough = (found.diff(dim=3).abs().mean((1, 2, 3)), shown.diff(dim=3).abs().mean((1, 2, 3)))
    assert (rough[1] < 0.7 * rough[0]).all()
    assert len({round(x, 2) for x in rough[1].tolist()}) == 3


@pytest.mark.parametrize(("least", "most"), [(64, 64), (100, 100)])
def test_shrinking_is_two_resizes(least: int, most: int) -> None:
    image = torch.rand(1, 3, 130, 90)
    twice = detector.resized(detector.resized(image, least, True), 120, True)
    assert torch.equal(gramnet.shrunk(image, least, most, 120), twice)


@pytest.mark.parametrize("variant", ["", "three", "benchmark"])
def test_small_ones_see_any_image_and_are_saved(tmp_path: Path, variant: str) -> None:
    torch.manual_seed(0)
    config = methods.config("gramnet", variant, "small")
    method = methods.build("gramnet", config).eval()
    for height, width in ((1, 1), (7, 90), (256, 256)):
        # untrained, on bytes: it may be sure of itself
        assert 0 <= method.predict(torch.rand(1, 3, height, width)).score.item() <= 1
    methods.save(method, "gramnet", variant, config, tmp_path)
    image = torch.rand(1, 3, 60, 40)
    assert torch.equal(methods.load(tmp_path)(image), method(image))


def test_everything_decays() -> None:
    method = methods.build("gramnet", methods.config("gramnet", "", "small"))
    (group,) = method.parameter_groups(1e-4)
    assert group["weight_decay"] == 1e-4
    assert len(group["params"]) == len(list(method.parameters()))


def test_it_starts_from_a_resnet18(tmp_path: Path) -> None:
    shapes = resnets.trunk((2, 2, 2, 2), bottleneck=False) | resnets.linear("fc", 512, 1000)
    given = resnets.filled(shapes)
    torch.save(given, tmp_path / "resnet18.pth")
    method = gramnet.build(gramnet.Config(), {"backbone": tmp_path / "resnet18.pth"})
    assert torch.equal(method.network.layer4[1].conv2.weight, given["layer4.1.conv2.weight"])
    assert method.network.fcnewr[3].weight.std() > 0
