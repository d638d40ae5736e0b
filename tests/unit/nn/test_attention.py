"""Strided sparse attention against a loop over groups written out here."""

import math

import pytest
import torch

from unforge.nn.attention import Attention, grid_attention, key_mask, schedule


def looped(qkv: torch.Tensor, heads: int, rate: int) -> torch.Tensor:
    """One token after the other: softmax over the tokens whose row and column agree modulo `rate`."""
    b, h, w, c = qkv.shape
    d = c // (3 * heads)
    parts = qkv.double().view(b, h, w, 3, heads, d)
    out = torch.zeros(b, h, w, heads, d, dtype=torch.float64)
    for y in range(h):
        for x in range(w):
            group = parts[:, y % rate :: rate, x % rate :: rate].reshape(b, -1, 3, heads, d)
            score = torch.einsum("bhd,bnhd->bhn", parts[:, y, x, 0], group[:, :, 1]) / math.sqrt(d)
            out[:, y, x] = torch.einsum("bhn,bnhd->bhd", score.softmax(-1), group[:, :, 2])
    return out.reshape(b, h, w, heads * d)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (5, 7), (3, 9), (1, 1), (2, 3)])
@pytest.mark.parametrize("rate", [1, 2, 4])
def test_attends_within_the_strided_group_only(height: int, width: int, rate: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, height, width, 3 * 2 * 4)
    expected = looped(qkv, 2, rate)
    torch.testing.assert_close(grid_attention(qkv, 2, rate).double(), expected, atol=1e-5, rtol=1e-5)


def test_padding_gives_finite_gradients_even_where_a_group_is_empty() -> None:
    qkv = torch.randn(1, 1, 3, 24, requires_grad=True)
    grid_attention(qkv, 2, 4).square().sum().backward()
    assert qkv.grad is not None
    assert torch.isfinite(qkv.grad).all()


def test_key_mask_hides_padding_and_leaves_no_group_without_keys() -> None:
    mask = key_mask(3, 2, 2, torch.device("cpu"))
    assert mask.shape == (4, 1, 1, 2)
    # Rows 0 and 2 belong to row group 0, row 1 and the padded row 3 to row group 1.
    assert mask[:, 0, 0].tolist() == [[True, True], [True, True], [True, False], [True, False]]
    assert key_mask(1, 1, 2, torch.device("cpu")).all(dim=-1).tolist() == [[[True]]] * 4


def test_schedule_reads_the_equations_with_integer_division() -> None:
    assert schedule((8, 4, 2, 1), 20) == [2 ** (3 - i // 5) for i in range(20)]
    assert schedule((2, 1), 7) == [2, 2, 2, 2, 1, 1, 1]
    assert schedule((4,), 3) == [4, 4, 4]


def test_weights_are_the_attention_the_block_uses() -> None:
    torch.manual_seed(0)
    attention = Attention(8, heads=1, rate=2)
    x = torch.randn(1, 4, 6, 8)
    maps = attention.weights(x)
    assert maps.shape == (1, 4, 6, 4, 6)
    value = attention.qkv(x)[..., 16:]
    mixed = torch.einsum("bijkl,bklc->bijc", maps, value)
    torch.testing.assert_close(attention.proj(mixed), attention(x), atol=1e-5, rtol=1e-5)
    assert maps[0, 1, 2, 0].abs().sum() == 0, "row 0 is not in the group of row 1"


def test_weights_of_a_large_map_are_sums_over_cells() -> None:
    torch.manual_seed(0)
    attention = Attention(4, heads=2, rate=2)
    maps = attention.weights(torch.randn(1, 7, 10, 4), limit=4)
    assert maps.shape == (1, 4, 4, 4, 4)
    torch.testing.assert_close(maps.sum((3, 4)), torch.ones(1, 4, 4))
