"""Scene-wise Expert Injection and the concatenations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unforge.methods.tampertok import fusion


def test_swei_starts_as_the_backbone_bit_for_bit() -> None:
    torch.manual_seed(0)
    block = fusion.SwEI(8, (3, 5), 2.0)
    features = torch.randn(2, 16, 8)
    mixed, fused, weights = block(features, torch.randn(2, 3, 6, 6), torch.randn(2, 5, 2, 2))
    assert torch.equal(mixed, features)
    assert fused.abs().mean() > 0.01, "the experts are there, only not let in"
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 16))
    mixed.square().sum().backward()
    assert block.ffn[2].weight.grad.abs().sum() > 0, "and what lets them in learns from the first step"


def test_swei_is_equations_8_to_10() -> None:
    torch.manual_seed(0)
    block = fusion.SwEI(4, (2, 3), 1.0).double().requires_grad_(False)
    nn.init.normal_(block.ffn[2].weight)
    features = torch.randn(1, 4, 4, dtype=torch.double)
    shallow, deep = torch.randn(1, 2, 2, 2).double(), torch.randn(1, 3, 1, 1).double()
    mixed, fused, weights = block(features, shallow, deep)
    for place in range(4):
        own = features[0, place]
        experts = []
        for part, values in ((block.shallow, shallow[0, :, place // 2, place % 2]), (block.deep, deep[0, :, 0, 0])):
            normed = (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()
            experts.append(part.project.weight @ (normed * part.norm.weight + part.norm.bias) + part.project.bias)
        query = block.query.weight @ own
        scores = [float(query @ (w @ e)) / math.sqrt(4) for w, e in
                  zip((block.key_shallow.weight, block.key_deep.weight), experts, strict=True)]  # fmt: skip
        alpha = math.exp(scores[0]) / (math.exp(scores[0]) + math.exp(scores[1]))
        assert float(weights[0, place, 0]) == pytest.approx(alpha)
        together = alpha * experts[0] + (1 - alpha) * experts[1]
        torch.testing.assert_close(fused[0, place], together)
        torch.testing.assert_close(mixed[0, place], own + block.ffn(together))


def test_intensity_by_hand() -> None:
    # First image: one tile, expert 3 and 4 (RMS 5/sqrt 2), backbone 1 and 7 (RMS 5): 0.7071.
    # Second: two tiles; expert 2 everywhere, backbone 1 and 1, then 0 and 0 (RMS 1/sqrt 2): 2.8284.
    expert = torch.tensor([[[3.0, 4.0]], [[2.0, 2.0]], [[2.0, 2.0]]])
    own = torch.tensor([[[1.0, 7.0]], [[1.0, 1.0]], [[0.0, 0.0]]])
    assert fusion.intensity(expert, own, (1, 2)).tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(8)])


@pytest.mark.parametrize("as_tuple", [False, True])
def test_hooks_change_patches_and_leave_the_class_token(as_tuple: bool) -> None:
    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return (x * 2, "attention") if as_tuple else x * 2

    torch.manual_seed(0)
    layers = nn.ModuleList([Layer(), Layer()])
    injection = fusion.Injection((2,), 4, (2, 2), 1.0)
    injection.attach(layers)
    nn.init.constant_(injection.blocks["2"].ffn[2].bias, 1.0)
    states = torch.randn(1, 5, 4)
    maps = (torch.randn(1, 2, 2, 2), torch.randn(1, 2, 1, 1))

    def output(layer: nn.Module) -> torch.Tensor:
        found = layer(states)
        return found[0] if as_tuple else found

    assert torch.equal(output(layers[1]), states * 2), "without an expert nothing happens"
    injection.give(maps)
    changed = output(layers[1])
    torch.testing.assert_close(changed[:, 1:], states[:, 1:] * 2 + 1)
    assert torch.equal(changed[:, 0], states[:, 0] * 2)
    assert torch.equal(output(layers[0]), states * 2)
    assert list(injection.take((1,))) == ["i_avg_2"]
    with pytest.raises(ValueError, match="layer 3"):
        fusion.Injection((3,), 4, (2, 2), 1.0).attach(layers)


def test_concatenations() -> None:
    torch.manual_seed(0)
    tokens, maps = torch.randn(2, 4, 6), (torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2))
    by_channel = fusion.Concatenation("dimension", 6, (3, 5))
    torch.testing.assert_close(by_channel(tokens, *maps), tokens)
    assert by_channel.mix.weight.shape == (6, 12), "2H to H"
    nn.init.eye_(by_channel.mix.weight[:, 6:])
    expert = by_channel.shallow(maps[0], 2) + by_channel.deep(maps[1], 2)
    torch.testing.assert_close(by_channel(tokens, *maps), tokens + expert)
    by_token = fusion.Concatenation("sequence", 6, (3, 5))
    doubled = by_token(tokens, *maps)
    assert doubled.shape == (2, 8, 6)
    assert torch.equal(doubled[:, :4], tokens)
