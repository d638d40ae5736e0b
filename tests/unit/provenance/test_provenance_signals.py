"""Signals: exact where the decoder can be inverted, equal to their formulas elsewhere, with the fewest passes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.provenance import toys
from unforge.provenance import signals
from unforge.provenance.config import EPS, Search, Tracer

ROUNDING = (0.5 / 255) ** 2
"""Largest mean squared error that 8-bit rounding can leave."""


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return toys.photographs(16)


@given(st.integers(0, 2**20), st.sampled_from([(2, 5), (4, 4), (3, 3)]), st.integers(2, 64))
@settings(max_examples=25, deadline=None)
def test_own_images_lie_on_the_codes_and_photographs_do_not(seed: int, shape: tuple[int, int], codes: int) -> None:
    """An orthogonal decoder keeps distances, so rounding a pixel by at most half a level moves f by as much, and
    the nearest code is never farther than the true one: QuantLoss is bounded, whatever the codes."""
    toy = toys.PatchToy(seed, patch=shape[0], grid=shape[1], codes=codes)
    tokens = torch.from_numpy(np.random.default_rng(seed + 1).integers(0, codes, (5, shape[1] ** 2)))
    own = toy.decode(toy.lookup(tokens))
    exact = signals.measure(toy, own, ["quant_loss"])["quant_loss"]
    assert exact.max() < 1e-12
    rounded = signals.measure(toy, toys.bytes_of(own), ["quant_loss"])["quant_loss"]
    assert (rounded <= ROUNDING).all()
    assert (rounded > exact).all()
    pictures = toys.photographs(toy.image_size)
    real = signals.measure(toy, pictures, ["quant_loss"])["quant_loss"]
    assert real.min() > 20 * ROUNDING


def test_rounding_costs_a_twelfth_of_a_level_squared() -> None:
    toy = toys.PatchToy(codes=64, grid=16)
    own = toy.decode(toy.lookup(torch.randint(64, (20, 256))))
    rounded = signals.measure(toy, toys.bytes_of(own), ["quant_loss"])["quant_loss"]
    assert float(rounded.mean()) == pytest.approx((1 / 255) ** 2 / 12, rel=0.05)


def test_codes_of_whole_levels_survive_rounding_exactly() -> None:
    toy = toys.PatchToy(2)
    with torch.no_grad():
        toy.codes.copy_((toy.codes @ toy.basis.T).mul(255).round().div(255) @ toy.basis)
    own = toy.decode(toy.lookup(torch.randint(32, (4, 16))))
    assert signals.measure(toy, toys.bytes_of(own), ["quant_loss"])["quant_loss"].max() < 1e-12


def test_enc_loss_says_nothing_when_the_decoder_can_be_inverted(photos: torch.Tensor) -> None:
    found = signals.measure(toys.PatchToy(), photos, ["enc_loss", "reconstruction", "quant_loss"])
    assert found["enc_loss"].max() < 1e-12
    torch.testing.assert_close(found["reconstruction"], found["quant_loss"], atol=1e-3, rtol=0.2)


def test_signals_are_their_formulas(photos: torch.Tensor) -> None:
    toy, inverse = toys.ConvToy(1), toys.ConvToy(2)
    names = [*signals.PAPER, "reconstruction"]
    for encoder in (None, inverse):
        found = signals.measure(toy, photos, names, encoder)
        assert list(found) == names
        assert all(value.shape == (len(photos),) and value.dtype == torch.float64 for value in found.values())
        used = toy if encoder is None else encoder
        for i, photo in enumerate(photos):
            x = photo[None]
            with torch.no_grad():
                f = used.encode(x)
                distances = (f[0].permute(1, 2, 0).reshape(-1, 1, 6) - toy.codes).square().sum(2)
                codes = toy.codes[distances.argmin(1)].T.reshape(1, 6, 4, 4)
                once = toy.decode(f).clamp(0, 1)
                twice = toy.decode(used.encode(once)).clamp(0, 1)
                through = toy.decode(codes).clamp(0, 1)
            quant = float(np.mean((f - codes).numpy() ** 2))
            first, second = float(np.mean((once - x).numpy() ** 2)), float(np.mean((twice - once).numpy() ** 2))
            ratio = (first + EPS) / (second + EPS)
            expected = [quant, first, ratio, quant * ratio, float(np.mean((through - x).numpy() ** 2))]
            assert [float(found[name][i]) for name in names] == pytest.approx(expected, rel=1e-5)


def test_the_product_ranks_images_as_the_papers_norms_do(photos: torch.Tensor) -> None:
    toy = toys.ConvToy(1)
    found = signals.measure(toy, photos)
    passes = signals.Passes(toy, photos)
    with torch.no_grad():
        f, z, once, twice = passes.features, passes.quantized.features, passes.once, passes.twice
    norm = [(a - b).flatten(1).norm(dim=1) for a, b in ((f, z), (once, photos), (twice, once))]
    assert torch.equal(found["combined"].argsort(), (norm[0] * norm[1] / norm[2]).argsort())


def counted(toy: toys.Toy, calls: Counter[str]) -> None:
    """Count a toy's encoder, decoder and quantizer passes, through hooks and the one method without a module."""
    toy.encoder.register_forward_hook(lambda *_: calls.update(["encode"]))
    toy.decoder.register_forward_hook(lambda *_: calls.update(["decode"]))
    quantize = toy.quantize
    toy.quantize = lambda features: (calls.update(["quantize"]), quantize(features))[1]


@pytest.mark.parametrize(
    ("names", "encode", "decode", "quantize"),
    [
        (["quant_loss"], 1, 0, 1),
        (["enc_loss"], 1, 1, 0),
        (["enc_loss_calibrated"], 2, 2, 0),
        (["reconstruction"], 1, 1, 1),
        (["aedr_homogeneity"], 2, 2, 0),
        (["combined"], 2, 2, 1),
        (list(signals.PAPER), 2, 2, 1),
        ([*signals.PAPER, "reconstruction", "aedr_homogeneity"], 2, 3, 1),
        ([*signals.PAPER, "reconstruction", "latent_tracer"], 2, 3 + 7, 1),
    ],
)
@pytest.mark.parametrize("inverse", [False, True])
def test_passes_are_shared(photos, names: list[str], encode: int, decode: int, quantize: int, inverse: bool) -> None:
    toy, calls = toys.ConvToy(), Counter()
    counted(toy, calls)
    encoder, others = None, Counter()
    if inverse:
        encoder = toys.ConvToy(1)
        counted(encoder, others)
    signals.measure(toy, photos, names, encoder, tracer=Tracer(iterations=7))
    found = {**calls, "encode": (others if inverse else calls)["encode"]}
    assert (found["encode"], found.get("decode", 0), found.get("quantize", 0)) == (encode, decode, quantize)
    assert (calls if inverse else others)["encode"] == 0
    assert others["decode"] == others["quantize"] == 0


def test_searched_signals_share_passes_too(photos: torch.Tensor) -> None:
    toy, calls = toys.ScaledToy(), Counter()
    counted(toy, calls)
    names = ["quant_loss", "quant_loss_opt", "combined", "combined_opt"]
    found = signals.measure(toy, photos, names, settings=Search(iterations=5, faithful=False))
    assert calls == {"encode": 2, "decode": 2, "quantize": 1}
    assert (found["quant_loss_opt"] <= found["quant_loss"]).all()
    ratio = found["combined"] / found["quant_loss"]
    torch.testing.assert_close(found["combined_opt"], found["quant_loss_opt"] * ratio)


def test_images_do_not_see_each_other(photos: torch.Tensor) -> None:
    names = [*signals.PAPER, "reconstruction", "aedr_homogeneity", "latent_tracer"]
    settings = Tracer(iterations=3)
    together = signals.measure(toys.ConvToy(), photos, names, tracer=settings)
    for i in (0, 5):
        alone = signals.measure(toys.ConvToy(), photos[i : i + 1], names, tracer=settings)
        assert [float(alone[n][0]) for n in names] == pytest.approx([float(together[n][i]) for n in names], rel=1e-4)


def test_nothing_keeps_a_graph_or_changes_weights(photos: torch.Tensor) -> None:
    toy = toys.ConvToy()
    before = {key: value.clone() for key, value in toy.state_dict().items()}
    found = signals.measure(toy, photos, ["combined", "latent_tracer"], tracer=Tracer(iterations=2))
    assert not any(value.requires_grad for value in found.values())
    assert all(torch.equal(before[key], value) for key, value in toy.state_dict().items())
    assert all(p.grad is None for p in toy.parameters())


def test_what_cannot_be_measured_is_refused(photos: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="quant_los'"):
        signals.measure(toys.ConvToy(), photos, ["quant_los"])
    with pytest.raises(ValueError, match=r"\(B,3,16,16\)"):
        signals.measure(toys.ConvToy(), photos[:, :, :15])
    with pytest.raises(ValueError, match="ConvToy has no codes on several scales"):
        signals.measure(toys.ConvToy(), photos, ["quant_loss_opt"])
