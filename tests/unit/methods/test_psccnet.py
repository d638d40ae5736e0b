"""PSCC-Net against its counts, official key names and numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.unit.methods import samples
from unforge import counts, methods
from unforge.methods import psccnet
from unforge.methods.psccnet import network


def small(variant: str = "", **changes: object) -> psccnet.PSCCNet:
    torch.manual_seed(0)
    return psccnet.build(replace(methods.config("psccnet", variant, "small"), **changes), {})


def test_counts_are_those_of_the_official_network() -> None:
    found = counts.of("psccnet")
    assert {part: parameters for part, (parameters, _) in found.items()} == {
        "": 3_667_942,
        "trunk": 2_028_572,
        "localisation": 719_824,
        "detection": 919_546,
    }
    assert found[""][1] == pytest.approx(45.03e9, rel=0.01)
    assert found["localisation"][1] == pytest.approx(18.56e9, rel=0.001)


def test_key_names_are_official() -> None:
    with torch.device("meta"):
        method = psccnet.build(psccnet.Config(), {})
    trunk = set(method.trunk.state_dict())
    weights = {name for name in trunk if name.startswith(("stage3.0.fuse", "transition"))}
    weights = {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}
    convs = {name for name in weights if method.trunk.state_dict()[f"{name}.weight"].ndim == 4}
    assert convs == {
        "transition1.0.0", "transition1.1.0.0", "transition2.2.0.0", "transition3.3.0.0",
        "stage3.0.fuse_layers.0.1.0", "stage3.0.fuse_layers.0.2.0", "stage3.0.fuse_layers.1.0.0.0",
        "stage3.0.fuse_layers.1.2.0", "stage3.0.fuse_layers.2.0.0.0", "stage3.0.fuse_layers.2.0.1.0",
        "stage3.0.fuse_layers.2.1.0.0",
    }  # fmt: skip
    assert {
        "conv1.weight", "bn2.running_var", "layer1.0.downsample.0.weight", "layer1.1.conv3.weight",
        "stage2.0.branches.1.1.bn2.weight", "stage4.0.branches.3.0.conv1.weight",
    } <= trunk  # fmt: skip
    parts = ("g", "theta", "phi", "W_s", "W_c", "getmask.0", "getmask.2")
    assert set(method.localisation.state_dict()) == {
        f"getmask{i}.{name}"
        for i in (1, 2, 3, 4)
        for name in ("gamma_s", "gamma_c", *(f"{part}.{end}" for part in parts for end in ("weight", "bias")))
    }
    assert {
        "incre_modules.0.0.downsample.1.running_mean", "downsamp_modules.2.0.bias", "downsamp_modules.2.1.weight",
        "final_layer.0.weight", "final_layer.1.bias", "classifier.0.weight", "classifier.2.bias",
    } <= set(method.detection.state_dict())  # fmt: skip


def plain(channels: int, reduction: int) -> network.Correlation:
    """Values as they are, attention even, W the identity."""
    block = network.Correlation(channels, reduction, 4)
    inner = channels * reduction**2
    with torch.no_grad():
        for conv in (block.g, block.theta, block.phi, block.W_s, block.W_c):
            conv.weight.zero_()
            conv.bias.zero_()
        block.g.weight.copy_(torch.eye(inner)[:, :, None, None])
        block.W_s.weight.copy_(torch.eye(channels)[:, :, None, None])
        block.W_c.weight.copy_(torch.eye(channels)[:, :, None, None])
    return block


def test_correlation_by_hand() -> None:
    """One channel of 4x4, r = 2: the raw reshape makes each row a channel of 2x2."""
    block = plain(1, 2)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    with torch.no_grad():
        block.gamma_s.fill_(10.0)
        block.gamma_c.fill_(100.0)
        found = (block.correlated(x) - x)[0, 0]
    # even attention over positions gives the mean of each row: 4 i + 1.5; over channels, position p is the mean of
    # p, 4 + p, 8 + p and 12 + p in every channel, and row i of the result is position i: 6 + i
    expected = [[10 * (4 * i + 1.5) + 100 * (6 + i)] * 4 for i in range(4)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_attention_over_positions_is_unscaled() -> None:
    """Two positions, one channel, theta and phi the identity: position i looks at j by softmax of x_i x_j."""
    block = plain(1, 1)
    with torch.no_grad():
        block.theta.weight.fill_(1.0)
        block.phi.weight.fill_(1.0)
        block.gamma_c.zero_()
        found = (block.correlated(torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)) - torch.tensor([1.0, 2.0])).flatten()
    first = (math.exp(1) * 1 + math.exp(2) * 2) / (math.exp(1) + math.exp(2))
    second = (math.exp(2) * 1 + math.exp(4) * 2) / (math.exp(2) + math.exp(4))
    assert found.tolist() == pytest.approx([first, second], rel=1e-5)


def test_a_finer_map_is_multiplied_by_the_coarser_mask() -> None:
    head = small().localisation
    with torch.no_grad():
        head.get_submodule("getmask4").getmask[2].bias.fill_(-100.0)  # type: ignore[union-attr,index,operator]
        maps = [torch.rand(1, c, 32 >> i, 32 >> i) for i, c in enumerate((8, 10, 14, 20))]
        first = head(maps)
        second = head([maps[0], maps[1], maps[2] + 1, maps[3]])
    torch.testing.assert_close(first[2], second[2], msg="a mask of 0 hides the finer map")
    assert [tuple(x.shape[1:]) for x in first] == [(1, 32, 32), (1, 16, 16), (1, 8, 8), (1, 4, 4)]


def test_balanced_loss_by_hand() -> None:
    mask = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)
    logits = torch.tensor([0.0, 0.0, 2.0, 0.0]).view(1, 1, 2, 2)
    # one of four is manipulated: it weighs 0.5 / 0.25, the others 0.5 / 0.75
    wrong = math.log(1 + math.exp(2))
    expected = (2 * math.log(2) + 2 / 3 * (2 * math.log(2) + wrong)) / 4
    assert network.balanced(logits, mask).item() == pytest.approx(expected, rel=1e-5)
    nothing = network.balanced(logits, torch.zeros_like(mask)).item()
    assert nothing == pytest.approx((3 * math.log(2) + wrong) / 4, rel=1e-5)
    assert network.balanced(logits, torch.ones_like(mask)).isfinite()


def test_coarse_masks_are_those_of_pillow() -> None:
    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[:32, :32]
    mask = (((rows - 14.3) ** 2 + 0.6 * (columns - 17.8) ** 2) < 90).astype(np.uint8) * 255
    for size in (16, 8, 4):
        resized = np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.BICUBIC)) / 255
        found = network.shrunk(torch.from_numpy(mask / 255.0).float()[None, None], torch.Size((size, size)))
        # Pillow rounds to 8 bits before the threshold
        clear = np.abs(resized - 0.5) > 1 / 255
        assert clear.mean() > 0.9
        assert np.array_equal(found[0, 0].numpy()[clear] > 0, resized[clear] > 0.5)
        assert set(found.unique().tolist()) == {0.0, 1.0}


def test_class_weights_follow_from_the_share_of_authentic_images() -> None:
    method = small(authentic=0.25).eval()
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, :, 4:20, 4:20] = 1
    given = samples.forged(masks)
    with torch.no_grad():
        found = method.loss(given)
        _, logits = method(given.image)
    chosen = torch.log_softmax(logits, 1)[[0, 1], [1, 0]]
    expected = -(4 / 3 * chosen[0] + 4 * chosen[1]) / (4 / 3 + 4)
    assert float(found.terms["image"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(found.total) == pytest.approx(sum(float(value) for value in found.terms.values()), rel=1e-5)
    with pytest.raises(ValueError, match="learns from masks"):
        method.loss(replace(given, mask=None))


@pytest.mark.parametrize("variant", ["", "stem"])
def test_prediction_and_saving(tmp_path, variant: str) -> None:
    method = small(variant).eval()
    image = torch.rand(2, 3, 41, 60)
    with torch.no_grad():
        found = method.predict(image, extras=True)
        _, logits = method(image)
    assert found.mask is not None
    assert found.score is not None
    assert found.mask.shape == (2, 1, 41, 60)
    assert torch.equal(found.score, logits.softmax(1)[:, 1])
    assert set(found.extras) == set(method.EXTRAS)
    methods.save(method, "psccnet", variant, method.config, tmp_path)
    with torch.no_grad():
        assert torch.equal(methods.load(tmp_path).predict(image).mask, found.mask)


def test_the_trunk_sees_the_image_as_it_is_and_the_heads_a_fixed_size() -> None:
    method = small(head_size=64).eval()
    seen: dict[str, torch.Tensor] = {}
    method.trunk.register_forward_hook(lambda module, given, out: seen.update(trunk=given[0]))
    method.localisation.register_forward_hook(
        lambda module, given, out: seen.update(first=given[0][0], last=given[0][3])
    )
    image = torch.rand(1, 3, 40, 90)
    with torch.no_grad():
        found = method.predict(image)
    assert torch.equal(seen["trunk"], image)
    assert (seen["first"].shape[2:], seen["last"].shape[2:]) == ((64, 64), (8, 8))
    assert found.mask is not None
    assert found.mask.shape == (1, 1, 40, 90)


def test_features_go_from_fine_to_coarse() -> None:
    with torch.no_grad():
        found = small("stem").eval().features(torch.rand(1, 3, 64, 48))
    assert {name: tuple(x.shape[1:]) for name, x in found.items()} == {
        "s1": (8, 32, 24), "s2": (10, 16, 12), "s3": (14, 8, 6), "s4": (20, 4, 3),
    }  # fmt: skip
    assert list(found) == ["s1", "s2", "s3", "s4"]


def test_three_official_files_load_strictly() -> None:
    source, method = small(), small()
    files = [
        {f"module.{key}": value + 1 for key, value in part.state_dict().items()}
        for part in (source.trunk, source.localisation, source.detection)
    ]
    psccnet.load_official(method, {"model": files[0], "optimizer": {}}, *files[1:])
    start = source.state_dict()
    assert all(torch.equal(value, start[key] + 1) for key, value in method.state_dict().items())
    with pytest.raises(ValueError, match=r"localisation.*missing: getmask1\.gamma_s"):
        psccnet.load_official(
            method, files[0], {k: v for k, v in files[1].items() if k != "module.getmask1.gamma_s"}, files[2]
        )
    with pytest.raises(ValueError, match=r"trunk.*unexpected: classifier"):
        psccnet.load_official(method, files[0] | {"module.classifier.weight": torch.zeros(1)}, *files[1:])


def test_imagenet_weights_fill_the_trunk() -> None:
    method = small()
    given = {key: value + 1 for key, value in method.trunk.state_dict().items()}
    network.load_backbone(method, given | {"classifier.weight": torch.zeros(3), "final_layer.0.bias": torch.zeros(1)})
    assert all(torch.equal(value, given[key]) for key, value in method.trunk.state_dict().items())


def test_groups_hold_every_parameter_once() -> None:
    method = small("stem")
    groups = method.parameter_groups(0.3)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in method.parameters())
    assert all(p.ndim > 1 for p in groups[0]["params"])


def test_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'srm'.*'rgb' and 'stem'"):
        small(source="srm")
