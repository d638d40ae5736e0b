"""The released SparseViT: names and shapes of its state dict, written out here from its documentation, and counts."""

import functools
from collections.abc import Iterator

import pytest
import torch

from unforge import counts
from unforge.methods.sparsevit import Config, build, load_official
from unforge.methods.sparsevit.official import read_checkpoint

DIMS = (64, 128, 320, 512)
DEPTHS = (5, 8, 20, 7)
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def affine(name: str, *weight: int) -> Shapes:
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


def batch_norm(name: str, dim: int) -> Shapes:
    yield from affine(name, dim)
    yield f"{name}.running_mean", (dim,)
    yield f"{name}.running_var", (dim,)
    yield f"{name}.num_batches_tracked", ()


def uniformer(prefix: str, local_mlp: bool, layer_scale: bool) -> Shapes:
    """UniFormer-Base; SparseViT's has a depthwise convolution in the late MLPs."""
    channels = 3
    for stage, (dim, depth, patch) in enumerate(zip(DIMS, DEPTHS, (4, 2, 2, 2), strict=True), start=1):
        yield from affine(f"{prefix}patch_embed{stage}.norm", dim)
        yield from affine(f"{prefix}patch_embed{stage}.proj", dim, channels, patch, patch)
        channels = dim
        for i in range(depth):
            block = f"{prefix}blocks{stage}.{i}"
            yield from affine(f"{block}.pos_embed", dim, 1, 3, 3)
            if stage <= 2:
                yield from batch_norm(f"{block}.norm1", dim)
                yield from affine(f"{block}.conv1", dim, dim, 1, 1)
                yield from affine(f"{block}.conv2", dim, dim, 1, 1)
                yield from affine(f"{block}.attn", dim, 1, 5, 5)
                yield from batch_norm(f"{block}.norm2", dim)
                yield from affine(f"{block}.mlp.fc1", 4 * dim, dim, 1, 1)
                yield from affine(f"{block}.mlp.fc2", dim, 4 * dim, 1, 1)
                continue
            yield from affine(f"{block}.norm1", dim)
            yield from affine(f"{block}.attn.qkv", 3 * dim, dim)
            yield from affine(f"{block}.attn.proj", dim, dim)
            yield from affine(f"{block}.norm2", dim)
            yield from affine(f"{block}.mlp.fc1", 4 * dim, dim)
            yield from affine(f"{block}.mlp.fc2", dim, 4 * dim)
            if local_mlp:
                yield from affine(f"{block}.mlp.dwconv.dwconv", 4 * dim, 1, 3, 3)
            if layer_scale:
                yield f"{block}.gamma_1", (dim,)
                yield f"{block}.gamma_2", (dim,)


def sparsevit() -> Shapes:
    yield from uniformer("encoder_net.", local_mlp=True, layer_scale=True)
    for stage, dim in enumerate(DIMS, start=1):
        yield from affine(f"encoder_net.norm{stage}", dim)
    for i in range(1, 7):
        yield f"lmu.gamma{i}", (512,)
    yield from affine("lmu.norm", 512)
    for i in range(1, 5):
        yield from affine(f"lmu.conv_layer{i}", 512, 320, 1, 1)
    yield from affine("lmu.conv_last", 1, 512, 1, 1)


def imagenet(layer_scale: bool = True) -> Shapes:
    yield from uniformer("", local_mlp=False, layer_scale=layer_scale)
    yield from batch_norm("norm", 512)
    yield from affine("head", 1000, 512)


def filled(shapes: Shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(3) if name.endswith("tracked") else torch.rand(shape, generator=generator)
        for name, shape in shapes
    }


@pytest.fixture(scope="module")
def method() -> torch.nn.Module:
    return build(Config(), {})


def test_a_sparsevit_state_dict_fits_completely(method: torch.nn.Module) -> None:
    given = filled(sparsevit())
    loaded = load_official(method, {"model": {f"module.{name}": value for name, value in given.items()}})
    assert (loaded.kind, loaded.missing, loaded.unexpected) == ("sparsevit", (), ())
    own = method.state_dict()
    assert set(own) == set(given)
    assert all(torch.equal(own[name], value) for name, value in given.items())


@pytest.mark.parametrize("layer_scale", [True, False])
def test_an_imagenet_uniformer_fills_the_backbone(method: torch.nn.Module, layer_scale: bool) -> None:
    given = filled(imagenet(layer_scale))
    loaded = load_official(method, given)
    assert loaded.kind == "uniformer"
    assert loaded.unexpected == tuple(sorted(name for name in given if name.startswith(("norm.", "head."))))
    stages = {name.split(".")[-3] for name in loaded.missing if ".mlp.dwconv." in name}
    assert stages == {"dwconv"} or all(".blocks" in n or ".norm" in n or n.startswith("lmu.") for n in loaded.missing)
    assert any("gamma_1" in name for name in loaded.missing) != layer_scale
    value = method.state_dict()["encoder_net.blocks3.7.attn.qkv.weight"]
    assert torch.equal(value, given["blocks3.7.attn.qkv.weight"])


def test_a_foreign_state_dict_is_refused_and_changes_nothing(method: torch.nn.Module) -> None:
    before = method.state_dict()["encoder_net.blocks1.0.conv1.weight"].clone()
    with pytest.raises(ValueError, match=r"missing: encoder_net\.blocks1\.0"):
        load_official(method, {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)})
    short = filled(sparsevit())
    del short["lmu.gamma3"]
    with pytest.raises(ValueError, match=r"missing: lmu\.gamma3"):
        load_official(method, short)
    wrong = filled(sparsevit()) | {"lmu.gamma3": torch.zeros(256)}
    with pytest.raises(ValueError, match=r"another shape: lmu\.gamma3 \(256,\) for \(512,\)"):
        load_official(method, wrong)
    assert torch.equal(before, method.state_dict()["encoder_net.blocks1.0.conv1.weight"])


def test_a_pickle_is_read_without_running_code(tmp_path, method: torch.nn.Module) -> None:
    torch.save({"model": {"backbone.head.weight": torch.ones(2)}}, tmp_path / "a.pth")
    assert list(read_checkpoint(tmp_path / "a.pth")) == ["head.weight"]


PRINTED = [
    # variant, part, parameters (M), MACs (G); Tables 5 and 7.
    ("", "", "50.3", "46.2"),
    ("", "head", "0.66", "0.68"),
    ("aspp", "head", "18.35", "5.46"),
    ("aff", "head", "3.67", "2.06"),
]
RATIOS = [
    # variant, parameters, FLOPs relative to the dense UniFormer; Table 2.
    ("dense", "1.00", "1.00"),
    ("sparse", "1.00", "0.83"),
    ("lff", "1.01", "1.01"),
    ("sobel_lff", "1.05", "1.01"),
    ("bayar_lff", "1.05", "1.01"),
    ("dct_lff", "1.05", "1.03"),
    ("srm_lff", "1.05", "1.02"),
    ("", "1.01", "0.84"),
]


@functools.cache
def counted(variant: str) -> dict[str, tuple[int, float]]:
    return counts.of("sparsevit", variant)


@pytest.mark.parametrize(("variant", "part", "params", "macs"), PRINTED)
def test_counts_round_to_the_printed_ones(variant: str, part: str, params: str, macs: str) -> None:
    own = counted(variant)[part]
    digits = len(params.split(".")[1]), len(macs.split(".")[1])
    assert (f"{own[0] / 1e6:.{digits[0]}f}", f"{own[1] / 1e9:.{digits[1]}f}") == (params, macs)


@pytest.mark.parametrize(("variant", "params", "macs"), RATIOS)
def test_ratios_round_to_the_printed_ones(variant: str, params: str, macs: str) -> None:
    own, base = counted(variant)[""], counted("dense")[""]
    assert (f"{own[0] / base[0]:.2f}", f"{own[1] / base[1]:.2f}") == (params, macs)
