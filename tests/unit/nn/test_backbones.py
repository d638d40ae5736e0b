"""Backbones: grids, padding, positions."""

import pytest
import torch

from unforge.nn.attention import DropPath
from unforge.nn.uniformer import PatchEmbed, UniFormer
from unforge.nn.vit import VOLO, OutlookAttention, PlainViT


def uniformer(rates3: tuple[int, ...] = (4, 2, 1)) -> UniFormer:
    torch.manual_seed(0)
    return UniFormer(
        dims=(8, 8, 16, 24),
        depths=(1, 1, 6, 3),
        strides=(2, 2, 2, 2),
        head_dim=8,
        mlp_ratio=2.0,
        drop_path=0.1,
        layer_scale=0.5,
        rates3=rates3,
        rates4=(2, 1),
        runs3=3,
        runs4=2,
    ).eval()


def test_uniformer_gives_a_map_for_every_run_of_blocks() -> None:
    maps = uniformer()(torch.rand(2, 3, 64, 32))
    assert [tuple(x.shape) for x in maps] == [(2, 8, 4, 16)] * 3 + [(2, 4, 2, 24)] * 2
    assert uniformer().channels == [16, 16, 16, 24, 24]


def test_the_last_map_of_a_stage_is_normed_and_the_others_are_raw() -> None:
    maps = uniformer()(torch.rand(1, 3, 64, 64))
    means = [x.mean(-1).abs().max().item() < 1e-5 for x in maps]
    assert means == [False, False, True, False, True]


def test_dense_maps_are_taken_at_the_same_blocks() -> None:
    assert [tuple(x.shape) for x in uniformer((1,))(torch.rand(1, 3, 64, 64))] == [
        tuple(x.shape) for x in uniformer()(torch.rand(1, 3, 64, 64))
    ]


def test_patch_embedding_pads_only_what_does_not_divide() -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(3, 8, 4)
    image = torch.rand(1, 8, 12, 3)
    plain = embed.norm(embed.proj(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    torch.testing.assert_close(embed(image), plain)
    assert embed(image[:, :5, :9]).shape == (1, 2, 3, 8)


def test_vit_and_volo_take_any_size() -> None:
    vit = PlainViT(dim=16, depth=2, heads=2, mlp_ratio=2.0, drop_path=0.0, strides=(2, 4), grid=4, rates=(2, 1)).eval()
    volo = VOLO(
        dims=(8, 16),
        depths=(1, 2),
        heads=(2, 2),
        hidden=8,
        mlp_ratio=2.0,
        drop_path=0.0,
        strides=(2, 2),
        grid=4,
        rates=(2, 1),
    ).eval()
    for backbone in (vit, volo):
        for size, grid in (((32, 32), (4, 4)), ((37, 51), (5, 7)), ((1, 1), (1, 1))):
            (tokens,) = backbone(torch.rand(1, 3, *size))
            assert tokens.shape == (1, *grid, 16)
            assert torch.isfinite(tokens).all()


def test_outlook_attention_with_equal_weights_averages_neighbourhoods() -> None:
    torch.manual_seed(0)
    layer = OutlookAttention(4, heads=2)
    with torch.no_grad():
        layer.attn.weight.zero_()
        layer.attn.bias.zero_()
        layer.v.weight.copy_(torch.eye(4))
        layer.proj.weight.copy_(torch.eye(4))
        layer.proj.bias.zero_()
    x = torch.randn(1, 4, 4, 4)
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    expected = torch.zeros(1, 6, 6, 4)
    for i in range(0, 4, 2):
        for j in range(0, 4, 2):
            expected[:, i : i + 3, j : j + 3] += padded[:, i : i + 3, j : j + 3].mean((1, 2), keepdim=True)
    torch.testing.assert_close(layer(x), expected[:, 1:5, 1:5], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_drop_path_keeps_the_mean(training: bool) -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train(training)
    out = layer(torch.ones(8000, 2))
    assert out.mean().item() == pytest.approx(1.0, abs=0.03)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3] if training else [1.0])
