"""Nearest code, single-scale quantizers, remapping."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unforge.tokenizers import quantizers
from unforge.tokenizers.quantizers import Remapped, VectorQuantizer, drawn, nearest, straight_through


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 1100),
    codes=st.integers(1, 2200),
    channels=st.integers(1, 5),
    span=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_of_equal_distances_the_lowest_index(count: int, codes: int, channels: int, span: int, seed: int) -> None:
    """Whole numbers: distances are exact, and most codes have equals."""
    rng = np.random.default_rng(seed)
    features = rng.integers(-span, span + 1, (count, channels))
    codebook = rng.integers(-span, span + 1, (codes, channels))
    expected = np.zeros(count, dtype=np.int64)
    best = np.full(count, np.iinfo(np.int64).max)
    for index, code in enumerate(codebook):
        distance = ((features - code) ** 2).sum(1)
        expected[distance < best] = index
        best = np.minimum(best, distance)
    found = nearest(torch.tensor(features, dtype=torch.float32), torch.tensor(codebook, dtype=torch.float32))
    assert found.dtype == torch.int64
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    "shape", [(700, 16384, 8), (530, 4096, 32), (513, 1025, 256), (20, 24, 3), (3, 500, 4), (1, 16384, 8), (600, 7, 2)]
)
@pytest.mark.parametrize("normalised", [True, False])
def test_the_same_indices_as_cdist(shape: tuple[int, int, int], normalised: bool) -> None:
    count, codes, channels = shape
    generator = torch.Generator().manual_seed(count)
    features, codebook = (
        torch.randn(count, channels, generator=generator),
        torch.randn(codes, channels, generator=generator),
    )
    if normalised:
        features, codebook = F.normalize(features, dim=1), F.normalize(codebook, dim=1)
    assert torch.equal(nearest(features, codebook), torch.cdist(features, codebook).argmin(1))


def test_a_small_codebook_far_from_the_origin() -> None:
    """Distances that rounding makes 0: the same choice as cdist."""
    features = 1000 + torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) * 1e-3
    codebook = 1000 + torch.randn(90, 4, generator=torch.Generator().manual_seed(1)) * 1e-3
    assert torch.equal(nearest(features, codebook), torch.cdist(features, codebook).argmin(1))


def test_distances_exist_for_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    lowest = quantizers._lowest

    def seen(squared: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(squared.numel())
        return lowest(squared)

    monkeypatch.setattr(quantizers, "_lowest", seen)
    nearest(torch.randn(1500, 8), torch.randn(16384, 8))
    assert sum(sizes) == 1500 * 16384
    assert max(sizes) <= 2**22


def test_shapes_that_do_not_fit() -> None:
    for features, codebook in (((4, 3), (5, 2)), ((4, 3), (0, 3)), ((4, 3, 1), (5, 3))):
        with pytest.raises(ValueError, match=r"give \(N,C\) and \(K,C\)"):
            nearest(torch.zeros(features), torch.zeros(codebook))


def test_straight_through_is_exact_and_its_gradient_passes() -> None:
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    quantized, weight = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    passed = straight_through(features, quantized)
    assert torch.equal(passed, quantized)
    (passed * weight).sum().backward()
    assert torch.equal(features.grad, weight)


def test_a_code_for_each_place() -> None:
    quantizer = VectorQuantizer(3, 2)
    quantizer.codebook.data = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    features = torch.tensor([[[[0.9, 1.1], [0.2, 2.0]], [[0.0, 0.0], [1.6, 2.6]]]])
    tokens = quantizer.tokens(features)
    assert tokens.tolist() == [[0, 1, 2, 2]]
    assert quantizer.lookup(tokens).tolist() == [[[[0.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [3.0, 3.0]]]]


def test_normalised_codes() -> None:
    quantizer = VectorQuantizer(2, 2, normalised=True)
    quantizer.codebook.data = torch.tensor([[3.0, 4.0], [-5.0, 0.0]])
    features = F.normalize(torch.tensor([[[[1.0]], [[1.0]]]]), dim=1)
    tokens = quantizer.tokens(features)
    assert tokens.tolist() == [[0]]
    assert torch.allclose(quantizer.lookup(tokens)[0, :, 0, 0], torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize(
    "tokens", [torch.zeros(2, 5, dtype=torch.int64), torch.full((1, 4), 3), torch.full((1, 4), -1), torch.zeros(1, 4)]
)
def test_tokens_that_are_none_are_refused(tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="tokens"):
        VectorQuantizer(3, 2).lookup(tokens)


def remap() -> Remapped:
    quantizer = Remapped(6, 1, used=3)
    quantizer.codebook.data = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]])
    return quantizer


def test_a_generator_sees_the_codes_that_are_used() -> None:
    quantizer = remap()
    quantizer.keep(torch.tensor([5, 0, 9, 0, 1, 1]))
    assert quantizer.codes == 3
    assert quantizer.to_full.tolist() == [0, 2, 4]
    # 1 lies midway between 0 and 2, 3 between 2 and 4: the lower token; 5 is nearest to 4
    assert quantizer.to_used.tolist() == [0, 0, 1, 1, 2, 2]
    features = torch.tensor([[[[0.1, 1.2], [2.9, 5.4]]]])
    tokens = quantizer.tokens(features)
    assert tokens.tolist() == [[0, 0, 1, 2]]
    assert quantizer.lookup(tokens).flatten().tolist() == [0.0, 0.0, 2.0, 4.0]


def test_a_released_mapping() -> None:
    quantizer = remap()
    quantizer.mapped(torch.tensor([2, 0, 0, -1, 1, 2]))
    assert quantizer.to_full.tolist() == [1, 4, 0]
    assert quantizer.to_used.tolist() == [2, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    "mapping",
    [
        torch.zeros(5, dtype=torch.int64),
        torch.zeros(6),
        torch.tensor([0, 1, 1, 0, 0, 0]),
        torch.tensor([0, 1, 2, 3, 0, 0]),
    ],
)
def test_a_mapping_that_is_none_is_refused(mapping: torch.Tensor) -> None:
    quantizer = remap()
    before = quantizer.to_used.clone()
    with pytest.raises(ValueError, match="mapping"):
        quantizer.mapped(mapping)
    assert torch.equal(quantizer.to_used, before)


def test_more_used_codes_than_there_are() -> None:
    with pytest.raises(ValueError, match="used 7"):
        Remapped(6, 1, used=7)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 30), count=st.integers(1, 70), seed=st.integers(0, 1000))
def test_rows_are_drawn_each_once_before_any_twice(size: int, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    rows = torch.arange(float(size))[:, None].expand(-1, 3)
    found = drawn(rows, count)
    assert found.shape == (count, 3)
    once = found[: min(size, count), 0].tolist()
    assert len(set(once)) == len(once)
    assert set(once) <= set(range(size))
    assert torch.allclose(found.round(), found, atol=0.05 * size + 1e-6)


def test_codes_that_are_not_chosen_move_onto_features() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 2)
    features = torch.randn(2, 2, 3, 3)
    rows = features.permute(0, 2, 3, 1).reshape(-1, 2)
    quantizer.prepare(features, revive_after=2)
    assert bool(quantizer.ready)
    assert all((rows == code).all(1).any() for code in quantizer.codebook.detach())
    quantizer.codebook.data[3] = 100.0
    for _ in range(2):
        quantizer.prepare(features, revive_after=2)
        assert quantizer.codebook[3, 0] == 100.0
        quantizer.chosen(torch.tensor([[0, 1, 2]]))
    assert quantizer.idle.tolist() == [0, 0, 0, 2]
    quantizer.prepare(features, revive_after=2)
    assert (rows == quantizer.codebook[3].detach()).all(1).any()
    assert quantizer.idle.tolist() == [0, 0, 0, 0]
