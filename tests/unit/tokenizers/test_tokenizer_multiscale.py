"""Residual quantizers of several scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unforge.tokenizers.multiscale import BinarySpherical, MultiScale, phi_of_scales, shrunk, split


def residual() -> MultiScale:
    """Codes 0, 1 and 4; a 2x2 map with one coarse token."""
    quantizer = MultiScale(3, 1, scales=(1, 2), phis=4)
    quantizer.codebook.data = torch.tensor([[0.0], [1.0], [4.0]])
    return quantizer


def test_worked_by_hand() -> None:
    """f = 3 5 / 4 4 has mean 4, so the coarse token is code 4 (index 2). With phi the identity 4 is subtracted
    everywhere: -1 1 / 0 0 is left, whose nearest codes are 0, 1, 0, 0. f_Z = 4 + those."""
    quantizer = residual()
    features = torch.tensor([[[[3.0, 5.0], [4.0, 4.0]]]])
    tokens = quantizer.tokens(features)
    assert tokens.tolist() == [[2, 0, 1, 0, 0]]
    assert quantizer.lookup(tokens).tolist() == [[[[4.0, 5.0], [4.0, 4.0]]]]
    assert quantizer.sums(tokens)[0].tolist() == [[[[4.0, 4.0], [4.0, 4.0]]]]


def test_worked_by_hand_with_phi() -> None:
    """phi(x) = x / 2 + 1 (no weights, bias 2). The coarse code 4 adds 3; left is 0 2 / 1 1, nearest codes 0 1 / 1 1
    (2 is nearer to 1 than to 4), which add 1 1.5 / 1.5 1.5."""
    quantizer = residual()
    for phi in quantizer.phi:
        phi.weight.data.zero_()
        phi.bias.data.fill_(2.0)
    tokens = quantizer.tokens(torch.tensor([[[[3.0, 5.0], [4.0, 4.0]]]]))
    assert tokens.tolist() == [[2, 0, 1, 1, 1]]
    assert quantizer.lookup(tokens).tolist() == [[[[4.0, 4.5], [4.5, 4.5]]]]


def bicubic(image: np.ndarray, side: int) -> np.ndarray:
    """(p, p) to (side, side): Keys' kernel with -0.75, half-pixel centres, edges repeated."""

    def weights(distance: float) -> float:
        a, x = -0.75, abs(distance)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    size = len(image)
    matrix = np.zeros((side, size))
    for place in range(side):
        centre = (place + 0.5) * size / side - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[place, min(max(tap, 0), size - 1)] += weights(centre - tap)
    return matrix @ image @ matrix.T


def test_against_numpy() -> None:
    """The rule of VAR in numpy, with phi's own weights, on a 4x4 map of scales 1, 2, 4."""
    torch.manual_seed(0)
    quantizer = MultiScale(40, 3, scales=(1, 2, 4), phis=2)
    quantizer.codebook.data.normal_()
    for phi in quantizer.phi:
        phi.weight.data.normal_(std=0.2)
        phi.bias.data.normal_()
    features = torch.randn(1, 3, 4, 4)
    codes = quantizer.codebook.detach().double().numpy()
    rest, total, indices = features[0].double().numpy(), np.zeros((3, 4, 4)), []
    for scale, (side, phi) in enumerate(zip((1, 2, 4), (0, 0, 1), strict=True)):
        small = rest.reshape(3, side, 4 // side, side, 4 // side).mean((2, 4))
        found = np.array([[((codes - small[:, y, x]) ** 2).sum(1).argmin() for x in range(side)] for y in range(side)])
        indices += found.flatten().tolist()
        large = np.stack([bicubic(codes[found][..., c], 4) for c in range(3)])
        weight, bias = (p.detach().double().numpy() for p in (quantizer.phi[phi].weight, quantizer.phi[phi].bias))
        padded = np.pad(large, ((0, 0), (1, 1), (1, 1)))
        mixed = np.zeros_like(large)
        for y in range(4):
            for x in range(4):
                mixed[:, y, x] = (weight * padded[None, :, y : y + 3, x : x + 3]).sum((1, 2, 3)) + bias
        added = 0.5 * large + 0.5 * mixed
        total, rest = total + added, rest - added
        assert quantizer.phi_of[scale] == phi
    tokens = quantizer.tokens(features)
    assert tokens.tolist() == [indices]
    assert np.allclose(quantizer.lookup(tokens)[0].detach().numpy(), total, atol=1e-5)


def test_phi_of_vars_ten_scales() -> None:
    """Scales 2 and 7 lie midway between two ticks; the released code's rounding puts both onto the upper one."""
    assert phi_of_scales(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert phi_of_scales(4, 4) == [0, 1, 2, 3]
    assert phi_of_scales(3, 1) == [0, 0, 0]


def test_mixtures_of_codes_combine_as_tokens_do() -> None:
    torch.manual_seed(1)
    quantizer = MultiScale(7, 2, scales=(1, 2, 3), phis=4)
    quantizer.codebook.data.normal_()
    tokens = torch.randint(7, (2, 14))
    parts = split(tokens, quantizer.scales)
    assert [tuple(p.shape) for p in parts] == [(2, 1, 1), (2, 2, 2), (2, 3, 3)]
    assert torch.equal(torch.cat([p.flatten(1) for p in parts], 1), tokens)
    one_hot = [torch.nn.functional.one_hot(p, 7).float() @ quantizer.codebook for p in parts]
    mixed = quantizer.combine([p.permute(0, 3, 1, 2) for p in one_hot])
    assert torch.allclose(mixed, quantizer.lookup(tokens), atol=1e-6)
    mixed.square().sum().backward()
    assert quantizer.codebook.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="3 scales"):
        quantizer.combine([p.permute(0, 3, 1, 2) for p in one_hot[:2]])


def test_the_codebook_starts_from_what_is_left_at_each_scale() -> None:
    torch.manual_seed(0)
    quantizer = MultiScale(30, 2, scales=(1, 2, 4), phis=4)
    features = torch.randn(6, 2, 4, 4) * 0.1 + torch.tensor([5.0, -3.0])[:, None, None]
    quantizer.prepare(features, revive_after=5)
    # shares 1:2:4 of 30 codes; the first are means of whole maps, the others small
    assert torch.allclose(quantizer.codebook[:4].mean(0), torch.tensor([5.0, -3.0]), atol=0.2)
    assert quantizer.codebook[4:].abs().max() < 1
    error = (quantizer.lookup(quantizer.tokens(features)) - features).square().mean()
    assert error < 0.5 * features.var(dim=(0, 2, 3)).mean()


def test_dead_codes_move_onto_the_rests_of_every_scale() -> None:
    torch.manual_seed(0)
    quantizer = MultiScale(64, 2, scales=(1, 4), phis=4)
    features = torch.randn(4, 2, 4, 4) + 20
    quantizer.prepare(features, revive_after=1)
    quantizer.codebook.data[32:] = 1e4
    quantizer.chosen(quantizer.search(features))
    quantizer.prepare(features, revive_after=1)
    revived = quantizer.codebook[32:].detach().mean(1)
    assert (revived > 15).any()
    assert (revived < 5).any()


def test_signs_worked_by_hand() -> None:
    """d = 1: f = 3 1 / 2 -2 has mean 1, sign +; left is 2 0 / 1 -3, signs + - + - (0 counts as -)."""
    quantizer = BinarySpherical(1, scales=(1, 2))
    features = torch.tensor([[[[3.0, 1.0], [2.0, -2.0]]]])
    bits = quantizer.tokens(features)
    assert bits.dtype == torch.bool
    assert bits[0, :, 0].tolist() == [True, True, False, True, False]
    assert quantizer.lookup(bits).tolist() == [[[[2.0, 0.0], [2.0, 0.0]]]]


def test_codes_lie_on_the_unit_sphere() -> None:
    quantizer = BinarySpherical(9, scales=(3,))
    found = quantizer.lookup(quantizer.tokens(torch.randn(2, 9, 3, 3)))
    assert torch.allclose(found.abs(), torch.full_like(found, 1 / 3))
    assert quantizer.codes == 512


def test_size_of_features_matters_to_later_scales_only() -> None:
    """The first scale sees directions only; the residual, and so the later ones, sees sizes."""
    torch.manual_seed(0)
    quantizer = BinarySpherical(6, scales=(1, 2, 4))
    features = torch.randn(3, 6, 4, 4)
    bits, larger = quantizer.tokens(features), quantizer.tokens(10 * features)
    assert torch.equal(bits[:, :1], larger[:, :1])
    assert not torch.equal(bits, larger)


def test_averages_over_uneven_areas() -> None:
    values = torch.arange(9.0).view(1, 1, 3, 3)
    assert torch.allclose(shrunk(values, 2)[0, 0], torch.tensor([[2.0, 3.0], [5.0, 6.0]]))
    assert shrunk(values, 3) is values


@pytest.mark.parametrize(
    "tokens", [torch.zeros(1, 4, dtype=torch.int64), torch.full((1, 5), 3), torch.zeros(5, dtype=torch.int64)]
)
def test_tokens_of_another_form_are_refused(tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="tokens"):
        residual().lookup(tokens)


@pytest.mark.parametrize(
    "bits", [torch.ones(1, 5, 3), torch.ones(1, 5, 2, dtype=torch.bool), torch.ones(1, 4, 3, dtype=torch.bool)]
)
def test_bits_of_another_form_are_refused(bits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="tokens"):
        BinarySpherical(3, scales=(1, 2)).lookup(bits)
