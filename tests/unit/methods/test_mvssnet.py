"""MVSS-Net against its counts, official key names and numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.unit.methods import samples
from unforge import counts, methods
from unforge.methods import mvssnet
from unforge.methods.mvssnet import network


def small(variant: str = "", **changes: object) -> mvssnet.MVSSNet:
    torch.manual_seed(0)
    return mvssnet.build(replace(methods.config("mvssnet", variant, "small"), **changes), {})


def resnet50_keys() -> set[str]:
    """Names of torchvision's ResNet-50, by its layout."""

    def norm(name: str) -> set[str]:
        return {f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}

    keys = {"conv1.weight", "fc.weight", "fc.bias"} | norm("bn1")
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for place in range(depth):
            block = f"layer{stage}.{place}"
            for i in (1, 2, 3):
                keys |= {f"{block}.conv{i}.weight"} | norm(f"{block}.bn{i}")
        keys |= {f"layer{stage}.0.downsample.0.weight"} | norm(f"layer{stage}.0.downsample.1")
    return keys


def official_keys() -> set[str]:
    """Names of the released state dict, from what is known of it."""
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {f"{trunk}.{name}" for trunk in ("model", "noise_extractor.model") for name in resnet50_keys()}
    keys |= {"constrain_conv.kernel", "head.pam.alpha", "head.cam.beta", "head.out.1.weight", "head.out.1.bias"}
    for axis in "xy":
        for stage in (1, 2, 3, 4):
            keys |= {f"sobel_{axis}{stage}.0.weight"} | {f"sobel_{axis}{stage}.1.{part}" for part in statistics}
    for block in [f"erb_db_{i}" for i in (1, 2, 3, 4)] + [f"erb_trans_{i}" for i in (1, 2, 3)]:
        keys |= {f"{block}.conv{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")}
        keys |= {f"{block}.bn.{part}" for part in statistics}
    for conv in ("conv_p1", "conv_c1", "conv_p2", "conv_c2"):
        keys |= {f"head.{conv}.0.weight"} | {f"head.{conv}.1.{part}" for part in statistics}
    return keys | {f"head.pam.conv_{i}.{part}" for i in "bcd" for part in ("weight", "bias")}


def test_counts_are_those_of_the_official_network() -> None:
    found = counts.of("mvssnet")
    assert found[""][0] == 146_880_335
    assert found["head"][0] == 95_693_059
    assert found[""][1] == pytest.approx(166.39e9, rel=0.01)


def test_key_names_are_official() -> None:
    with torch.device("meta"):
        own = mvssnet.build(mvssnet.Config(), {}).state_dict()
    assert set(own) == official_keys()
    assert len(own) == 800
    assert own["constrain_conv.kernel"].shape == (1, 3, 24)
    assert own["noise_extractor.model.conv1.weight"].shape == (64, 3, 7, 7)
    assert own["head.conv_p1.0.weight"].shape == (1024, 4096, 3, 3)


def test_constrained_convolution_by_hand() -> None:
    layer = network.ConstrainedConv()
    with torch.no_grad():
        layer.kernel.copy_(torch.arange(1.0, 25.0).expand(1, 3, 24) * torch.tensor([1.0, 2.0, -3.0])[:, None])
    stored = layer.kernel.detach().clone()
    weights = layer.eval().weights()
    # 1 + ... + 24 = 300, whatever the factor
    expected = [i / 300 for i in range(1, 13)] + [-1.0] + [i / 300 for i in range(13, 25)]
    for filter_ in weights:
        assert filter_.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert float(weights.detach().sum((1, 2, 3)).abs().max()) < 1e-6
    assert torch.equal(layer.kernel, stored), "evaluation changes no weight"
    # an even grey has no residual, away from the zero border
    assert float(layer(torch.full((1, 1, 7, 7), 0.7)).detach()[:, :, 2:5, 2:5].abs().max()) < 1e-6

    weights = layer.train().weights()
    assert layer.kernel.detach()[0, 1].tolist() == pytest.approx([i / 300 for i in range(1, 25)])
    weights.flatten()[0].backward()
    gradient = layer.kernel.grad
    assert gradient is not None
    assert float(gradient[0, 0, 0]) == 1.0, "the projection is outside the graph"
    assert float(gradient.abs().sum()) == 1.0


def test_sobel_block_by_hand() -> None:
    ramp = torch.arange(5.0).expand(1, 2, 5, 5).clone()
    slopes = [network.sobel(2, kernel).eval() for kernel in (network.ACROSS, network.DOWN)]
    x, y = (slope(ramp) for slope in slopes)
    # left minus right is -2, weighed 1 + 2 + 1, in two channels
    assert x[0, 0, 2, 2].item() == pytest.approx(-16.0, rel=1e-4)
    assert y[0, 0, 2, 2].item() == pytest.approx(0.0, abs=1e-5)
    quiet = network.gated(ramp, 0.01 * x, y + 0.12)
    assert quiet[0, 1, 2, 2].item() == pytest.approx(2.0 / (1 + math.exp(-0.2)), rel=1e-4)
    assert not slopes[0][0].weight.requires_grad
    assert slopes[0][1].weight.requires_grad


def test_an_even_image_has_finite_gradients() -> None:
    slopes = torch.zeros(1, 1, 3, 3, requires_grad=True)
    network.gated(torch.ones(1, 2, 3, 3), slopes, torch.zeros(1, 1, 3, 3)).sum().backward()
    assert slopes.grad is not None
    assert float(slopes.grad.abs().max()) == 0.0
    method = small().train()
    given = samples.forged(torch.ones(2, 1, 32, 32))
    method.loss(replace(given, image=torch.full((2, 3, 32, 32), 0.5))).total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)


def test_the_trunk_sees_bgr_with_statistics_in_rgb_order() -> None:
    method = small().eval()
    image = torch.tensor([1.0, 0.0, 0.5]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    seen = method.normalised(image)[0, :, 0, 0].tolist()
    expected = [(0.5 - 0.485) / 0.229, (0.0 - 0.456) / 0.224, (1.0 - 0.406) / 0.225]
    assert seen == pytest.approx(expected, rel=1e-5)
    asked = []
    method.constrain_conv.register_forward_hook(lambda module, given, out: asked.append(given[0]))
    method(image)
    grey = 0.1140 * expected[0] + 0.5870 * expected[1] + 0.2989 * expected[2]
    assert asked[0].shape == (1, 1, 8, 8)
    assert asked[0][0, 0, 3, 3].item() == pytest.approx(grey, rel=1e-5)


def test_dice_and_contour_by_hand() -> None:
    probability = torch.tensor([[0.5, 1.0], [0.0, 0.5]]).view(1, 1, 2, 2)
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    # 1 - (2 * 1.5 + 1) / (1.5 + 2 + 1)
    assert network.dice(probability, mask, torch.ones(1)).item() == pytest.approx(1 - 4 / 4.5)
    both = network.dice(torch.cat([probability, probability]), torch.cat([mask, 1 - mask]), torch.tensor([1.0, 0.0]))
    assert both.item() == pytest.approx(1 - 4 / 4.5), "images of weight 0 are left out"
    assert network.dice(probability, mask, torch.zeros(1)).item() == 0.0

    square = torch.zeros(1, 1, 6, 6)
    square[:, :, 1:4, 2:5] = 1
    edge = square.clone()
    edge[:, :, 2, 3] = 0
    assert torch.equal(network.contour(square, torch.Size((6, 6))), edge)
    at_border = torch.zeros(1, 1, 4, 4)
    at_border[:, :, :3, :3] = 1
    expected = at_border.clone()
    expected[:, :, 1, 1] = 0
    assert torch.equal(network.contour(at_border, torch.Size((4, 4))), expected)


def test_an_authentic_image_enters_the_image_term_only() -> None:
    method = small().eval()
    masks = torch.zeros(2, 1, 32, 32)
    with torch.no_grad():
        found = method.loss(samples.forged(masks))
    assert float(found.terms["mask"]) == float(found.terms["edge"]) == 0.0
    assert float(found.total) == pytest.approx(0.04 * float(found.terms["image"]))
    masks[0, :, 4:20, 4:20] = 1
    with torch.no_grad():
        found = method.loss(samples.forged(masks))
    parts = {name: float(value) for name, value in found.terms.items()}
    assert parts["mask"] > 0.1
    assert parts["edge"] > 0.1
    total = 0.16 * parts["mask"] + 0.04 * parts["image"] + 0.80 * parts["edge"]
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    with pytest.raises(ValueError, match="learns from masks"):
        method.loss(replace(samples.forged(masks), mask=None))


@pytest.mark.parametrize("variant", ["", "stem"])
def test_prediction_and_saving(tmp_path, variant: str) -> None:
    method = small(variant).eval()
    image = torch.rand(2, 3, 50, 44)
    state = {key: value.clone() for key, value in method.state_dict().items()}
    with torch.no_grad():
        found = method.predict(image, extras=True)
    assert found.mask is not None
    assert found.score is not None
    assert found.mask.shape == (2, 1, 50, 44)
    assert torch.equal(found.score, found.mask.amax((1, 2, 3)))
    assert set(found.extras) == set(method.EXTRAS)
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())
    methods.save(method, "mvssnet", variant, method.config, tmp_path)
    with torch.no_grad():
        assert torch.equal(methods.load(tmp_path).predict(image).mask, found.mask)


def test_whole_images_are_resized_at_paper_scale() -> None:
    method = small(input_size=64).eval()
    with torch.no_grad():
        assert method.predict(torch.rand(1, 3, 40, 90)).mask.shape == (1, 1, 64, 64)  # type: ignore[union-attr]
    assert mvssnet.Config().input_size == 512


def test_features_go_from_shallow_to_deep() -> None:
    with torch.no_grad():
        found = small("stem").eval().features(torch.rand(1, 3, 64, 48))
    assert list(found) == ["c1", "c2", "c3", "c4", "noise", "fused"]
    assert [tuple(x.shape[1:]) for x in found.values()] == [
        (12, 32, 24), (24, 16, 12), (48, 8, 6), (96, 8, 6), (96, 8, 6), (12, 8, 6),
    ]  # fmt: skip


def test_official_weights_load_strictly() -> None:
    source, method = small(classes=5), small(classes=5)
    given = {key: value + 1 for key, value in source.state_dict().items()}
    mvssnet.load_official(method, given)
    assert all(torch.equal(value, given[key]) for key, value in method.state_dict().items())
    with pytest.raises(ValueError, match=r"missing: head\.pam\.alpha"):
        mvssnet.load_official(method, {key: value for key, value in given.items() if key != "head.pam.alpha"})
    with pytest.raises(ValueError, match=r"unexpected: extra"):
        mvssnet.load_official(method, given | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"another shape: constrain_conv\.kernel \(3, 3, 24\)"):
        mvssnet.load_official(method, given | {"constrain_conv.kernel": torch.zeros(3, 3, 24)})


def test_imagenet_weights_fill_both_branches() -> None:
    method = small(classes=5)
    given = {key: value + 1 for key, value in method.model.state_dict().items() if "num_batches" not in key}
    mvssnet.load_official(method, given)
    for trunk in (method.model, method.noise_extractor.model):
        assert all(torch.equal(trunk.state_dict()[key], value) for key, value in given.items())
    with pytest.raises(ValueError, match=r"ResNet-50"):
        mvssnet.load_official(method, {"conv1.weight": torch.zeros(1)})


def test_groups_hold_what_is_trained_once() -> None:
    method = small(classes=5)
    groups = method.parameter_groups(0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    held = [id(p) for group in groups for p in group["params"]]
    frozen = {id(p) for name, p in method.named_parameters() if ".fc." in name or name.startswith("fc.")}
    frozen |= {id(p) for name, p in method.named_parameters() if name.startswith("sobel") and name.endswith("0.weight")}
    frozen |= {id(p) for p in method.model.fc.parameters()} | {
        id(p) for p in method.noise_extractor.model.fc.parameters()
    }
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in method.parameters()} - frozen


def test_unknown_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'srm'.*'bayar' and 'stem'"):
        small(noise="srm")
