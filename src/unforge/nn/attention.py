"""Self-attention over a strided grid of tokens, and the blocks made of it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth: in training drops the whole branch of an image with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B,...) of any shape."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * (torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep) / keep)


def key_mask(height: int, width: int, rate: int, device: torch.device) -> Tensor:
    """Which keys of each group lie inside the map.

    Returns bool (rate*rate, 1, 1, N), N the tokens of one group. A group that lies wholly in the padding
    (a map smaller than `rate`) keeps its keys: nothing of it is used, and no row is without a key.
    """
    rows = torch.arange(height + -height % rate, device=device) < height
    columns = torch.arange(width + -width % rate, device=device) < width
    inside = rows[:, None] & columns[None, :]
    groups = (
        inside.view(len(rows) // rate, rate, len(columns) // rate, rate).permute(1, 3, 0, 2).reshape(rate * rate, -1)
    )
    return (groups | ~groups.any(dim=1, keepdim=True))[:, None, None, :]


def grid_attention(qkv: Tensor, heads: int, rate: int) -> Tensor:
    """Attention among the tokens whose row and column agree modulo `rate`.

    `qkv` (B,H,W,3C), channels ordered (3, heads, C/heads); returns (B,H,W,C). `rate` 1 is dense attention.
    There are rate**2 groups of (H/rate)*(W/rate) tokens. A map that `rate` does not divide is padded at the
    bottom and the right, and the padded keys are masked out.

    Source: SparseViT, Sec. "Sparse Self-Attention", Fig. 2, read as the released code partitions it (a strided
    grid, not windows).
    """
    b, h, w, c = qkv.shape
    d = c // (3 * heads)
    down, right = -h % rate, -w % rate
    mask = None
    if down or right:
        qkv = F.pad(qkv, (0, 0, 0, right, 0, down))
        mask = key_mask(h, w, rate, qkv.device).repeat(b, 1, 1, 1)
    gh, gw = (h + down) // rate, (w + right) // rate
    grouped = qkv.view(b, gh, rate, gw, rate, 3, heads, d).permute(5, 0, 2, 4, 6, 1, 3, 7)
    q, k, v = grouped.reshape(3, b * rate * rate, heads, gh * gw, d).unbind(0)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out = out.reshape(b, rate, rate, heads, gh, gw, d).permute(0, 4, 1, 5, 2, 3, 6)
    out = out.reshape(b, h + down, w + right, heads * d)
    return out[:, :h, :w] if down or right else out


class Attention(nn.Module):
    """Multi-head self-attention on a grid of tokens (B,H,W,C), sparse with rate `rate`."""

    def __init__(self, dim: int, heads: int, rate: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.rate = rate
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(grid_attention(self.qkv(x), self.heads, self.rate))

    def weights(self, x: Tensor, limit: int = 32) -> Tensor:
        """Mean attention over the heads: where each anchor token looks.

        `x` (B,H,W,C) as given to `forward`; returns (B,a,b,c,d): for the anchor (a,b) of a grid of at most
        `limit` x `limit` evenly spaced tokens, the attention on each cell (c,d) of a grid of at most
        `limit` x `limit` cells, summed over the tokens of the cell. Tokens outside the anchor's group have 0;
        every anchor's map sums to 1. For H, W up to `limit` anchors and cells are the tokens themselves.
        """
        b, h, w, c = x.shape
        qkv = self.qkv(x).view(b, h, w, 3, self.heads, c // self.heads)
        keys = qkv[:, :, :, 1].reshape(b, h * w, self.heads, -1).permute(0, 2, 3, 1)
        rows, columns = _spread(h, limit, x.device), _spread(w, limit, x.device)
        high, wide = len(rows), len(columns)
        y = torch.arange(h, device=x.device)
        z = torch.arange(w, device=x.device)
        cell = ((y * high // h)[:, None] * wide + (z * wide // w)[None, :]).flatten()
        maps = []
        for row in rows.tolist():
            query = qkv[:, row, columns, 0].permute(0, 2, 1, 3)
            same = ((y % self.rate) == row % self.rate)[None, :, None] & (
                (z % self.rate)[None, :] == (columns % self.rate)[:, None]
            )[:, None, :]
            logits = (query @ keys) / math.sqrt(c // self.heads)
            logits = logits.masked_fill(~same.flatten(1), -math.inf)
            weight = logits.float().softmax(-1).mean(1)
            pooled = weight.new_zeros(b, wide, high * wide).index_add_(2, cell, weight)
            maps.append(pooled.view(b, wide, high, wide))
        return torch.stack(maps, dim=1)


def _spread(length: int, limit: int, device: torch.device) -> Tensor:
    """At most `limit` indices spread evenly over `length`."""
    count = min(length, limit)
    return torch.arange(count, device=device) * length // count


class DepthwiseConv(nn.Module):
    """3x3 convolution of each channel of (B,H,W,C), zero padding."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        nn.init.normal_(self.dwconv.weight, 0.0, math.sqrt(2.0 / 9.0))
        nn.init.zeros_(self.dwconv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MLP(nn.Module):
    """Two linear layers on (B,H,W,C) with GELU, and a depthwise 3x3 convolution before it if `local`."""

    def __init__(self, dim: int, hidden: int, local: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden) if local else nn.Identity()
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.dwconv(self.fc1(x))))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP on (B,H,W,C): the block of ViT and of VOLO's later stages."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float, rate: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, rate)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def init_linear(module: nn.Module) -> None:
    """Start of every linear layer below `module`: truncated normal, sigma 0.02, bias 0 (UniFormer, ViT, VOLO)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def schedule(rates: tuple[int, ...], depth: int) -> list[int]:
    """The rate of each of `depth` blocks: equal runs of ceil(depth / len(rates)) blocks, the last may be shorter.

    `schedule((8, 4, 2, 1), 20)` is five blocks of each rate, `schedule((2, 1), 7)` four of 2 and three of 1.
    Source: SparseViT, Eq. 1 and 2, with the quotient i/5 (i/4) read as an integer division, as the code has it.
    """
    run = -(-depth // len(rates))
    return [rates[i // run] for i in range(depth)]
