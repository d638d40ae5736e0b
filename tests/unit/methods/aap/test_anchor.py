"""Equations 2 to 7 and the margin, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from unforge.methods.aap import anchor


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def test_cosine_distances_by_hand() -> None:
    projected = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [-1.0, 0.0]]])
    truth = torch.tensor([[[5.0, 0.0], [3.0, 0.0], [4.0, 3.0], [2.0, 0.0]]])
    assert anchor.deviation(projected, truth, 0.0).flatten().tolist() == pytest.approx([0, 1, 1 - 24 / 25, 2])
    assert anchor.deviation(projected, truth, 1.0).flatten().tolist() == pytest.approx(
        [1 - 5 / 6, 1, 1 - 24 / 26, 1 + 2 / 3]
    )


def test_distances_lie_between_0_and_2_and_a_vector_of_0_is_no_trouble() -> None:
    torch.manual_seed(0)
    projected, truth = torch.randn(50, 9, 3), torch.randn(50, 9, 3)
    found = anchor.deviation(projected, truth, 1e-8)
    assert found.min() < 0.01
    assert found.max() > 1.99
    assert ((found >= -1e-6) & (found <= 2 + 1e-6)).all()
    cosine = torch.nn.functional.cosine_similarity(projected, truth, dim=-1)
    assert torch.allclose(found, 1 - cosine, atol=1e-5)
    zeros = torch.zeros(1, 1, 3, requires_grad=True)
    anchor.deviation(zeros, truth[:1, :1], 1e-8).sum().backward()
    assert anchor.deviation(zeros, truth[:1, :1], 1e-8).item() == 1
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()


def test_the_map_is_row_by_row() -> None:
    assert anchor.grid(torch.arange(4.0)[None]).tolist() == [[[[0, 1], [2, 3]]]]
    with pytest.raises(ValueError, match="6 image tokens"):
        anchor.grid(torch.zeros(1, 6))


def test_only_chosen_images_are_anchored() -> None:
    errors = torch.tensor([[0.0, 1.0], [0.5, 0.7], [2.0, 0.0]], requires_grad=True)
    loss = anchor.anchoring(errors, torch.tensor([True, False, True]))
    # means of tokens 0.5 and 1, of images 0.75
    assert loss.item() == pytest.approx(0.75)
    (gradient,) = torch.autograd.grad(loss, errors)
    assert gradient.tolist() == [[0.25, 0.25], [0, 0], [0.25, 0.25]]
    nothing = anchor.anchoring(errors, torch.zeros(3, dtype=torch.bool))
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, errors)[0].abs().max() == 0


def test_the_margin_is_of_vectors_of_length_1() -> None:
    # at right angles: sqrt(2); opposite: 2; the same: 0
    assert anchor.lengths(torch.tensor([[1.0, 2.0], [0.0, 0.0]])).tolist() == pytest.approx([(math.sqrt(2) + 2) / 2, 0])
    a, b = torch.tensor([0.6, 0.8]), torch.tensor([1.0, 0.0])
    distance = anchor.deviation(2 * a[None, None], 7 * b[None, None], 0.0)
    assert anchor.lengths(distance).item() == pytest.approx((a - b).norm().item())
    errors = torch.tensor([[2.0], [0.5], [0.5], [0.0]])
    real, tampered = torch.tensor([False, False, True, True]), torch.tensor([True, True, False, False])
    # tampered 2 and 1, real 1 and 0
    assert anchor.margin(errors, real, tampered).item() == pytest.approx(1)
    assert anchor.margin(errors, tampered, real).item() == pytest.approx(-1)
    assert anchor.margin(errors, real, real & tampered).item() == 0


def test_the_cue_is_upsampled_and_projected_by_hand() -> None:
    cue = anchor.Cue(1, 2)
    first, _, last = cue.layers
    with torch.no_grad():
        for one in (first.weight, first.bias, last.weight, last.bias):
            one.zero_()
        # the middle of each kernel alone: no neighbour counts
        first.weight[0, 0, 1, 1] = 3.0
        last.weight[0, 0, 1, 1], last.weight[1, 0, 1, 1] = 1.0, -2.0
        last.bias[1] = 5.0
    errors = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    # bilinear from 2 to 4, corners not aligned
    row = [gelu(3 * value) for value in (0.0, 0.25, 0.75, 1.0)]
    found = cue(errors, 4)
    assert found.shape == (1, 2, 4, 4)
    for y in range(4):
        assert found[0, 0, y].tolist() == pytest.approx(row, abs=1e-5)
        assert found[0, 1, y].tolist() == pytest.approx([5 - 2 * value for value in row], abs=1e-5)


def test_the_cue_starts_at_0_and_no_gradient_reaches_the_errors() -> None:
    torch.manual_seed(0)
    cue, errors = anchor.Cue(32, 8), torch.rand(2, 1, 4, 4, requires_grad=True)
    found = cue(errors, 16)
    assert found.shape == (2, 8, 16, 16)
    assert found.abs().max() == 0
    (found - 1).square().sum().backward()
    assert errors.grad is None
    assert cue.layers[2].bias.grad.abs().max() > 0


def test_the_projector_has_the_sizes_of_a_simple_mlp() -> None:
    with torch.device("meta"):
        projector = anchor.Projector(4096, 1024)
    assert {name: tuple(p.shape) for name, p in projector.named_parameters()} == {
        "norm.weight": (4096,),
        "norm.bias": (4096,),
        "layers.0.weight": (2048, 4096),
        "layers.0.bias": (2048,),
        "layers.2.weight": (1024, 2048),
        "layers.2.bias": (1024,),
    }
    small = anchor.Projector(4, 3)
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    normed = (x - 2.5) / math.sqrt(1.25 + 1e-5)
    hidden = (normed @ small.layers[0].weight.T + small.layers[0].bias).flatten().tolist()
    expected = torch.tensor([[[gelu(v) for v in hidden]]]) @ small.layers[2].weight.T + small.layers[2].bias
    assert torch.allclose(small(x), expected, atol=1e-6)


def test_wide_states_are_projected_always_the_same_way() -> None:
    narrow = torch.randn(2, 5)
    assert torch.equal(anchor.states(narrow, 8), narrow)
    torch.manual_seed(1)
    wide = torch.randn(40, 300)
    found = anchor.states(wide, 64)
    torch.manual_seed(2)
    assert torch.equal(anchor.states(wide, 64), found)
    assert torch.allclose(anchor.states(wide[:1] + 2 * wide[1:2], 64), found[:1] + 2 * found[1:2], atol=1e-4)
    # distances stay, roughly (Johnson and Lindenstrauss)
    ratio = torch.pdist(found) / torch.pdist(wide)
    assert ratio.mean().item() == pytest.approx(1, abs=0.05)
    assert 0.5 < ratio.min() < ratio.max() < 1.5
