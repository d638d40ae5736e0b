"""The encoder: a plain ViT whose blocks attend within windows or over the whole map, with relative positions.

Names of modules are those of official state dicts. Source: facts of the released network; none of its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.nn.attention import MLP, DropPath, init_linear
from unforge.nn.extractors import LocalPath

EPSILON = 1e-6
"""Of layer norms."""


def distances(table: Tensor, length: int) -> Tensor:
    """(length, length, d): what a table (2 T - 1, d) says of query i and key j, at distance i - j.

    The middle of the table where `length` is less than T (ours: the same distances mean the same); more are
    interpolated (linear). A map as large as the table, as in the released network, needs neither.
    """
    reach, wanted = (len(table) + 1) // 2, 2 * length - 1
    if length < reach:
        table = table[reach - length : reach + length - 1]
    elif length > reach:
        table = F.interpolate(table.T[None], size=wanted, mode="linear", align_corners=False)[0].T
    place = torch.arange(length, device=table.device)
    return table[place[:, None] - place[None, :] + length - 1]


class Attention(nn.Module):
    """Self-attention over a map (B,H,W,C). Logits get the query's products with relative positions of either axis;
    tables are shared by the heads and start at 0. As in ViTDet the query is not scaled in these products."""

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h, self.rel_pos_w = (nn.Parameter(torch.zeros(2 * side - 1, dim // heads)) for _ in "hw")

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        q, k, v = self.qkv(x).view(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        grid = q.unflatten(2, (h, w))
        rows = torch.einsum("bnyxd,ykd->bnyxk", grid, distances(self.rel_pos_h, h).to(q.dtype))
        columns = torch.einsum("bnyxd,xkd->bnyxk", grid, distances(self.rel_pos_w, w).to(q.dtype))
        bias = (rows[..., :, None] + columns[..., None, :]).reshape(b, self.heads, h * w, h * w)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(b, h, w, c))


def in_windows(x: Tensor, side: int, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """`attend` on each `side` x `side` window of (B,H,W,C), padded with zeros at the bottom and the right.

    Padded tokens are not masked out. Source: released code.
    """
    b, h, w, c = x.shape
    down, right = -h % side, -w % side
    padded = F.pad(x, (0, 0, 0, right, 0, down))
    high, wide = (h + down) // side, (w + right) // side
    windows = padded.view(b, high, side, wide, side, c).transpose(2, 3).reshape(-1, side, side, c)
    out = attend(windows).reshape(b, high, wide, side, side, c).transpose(2, 3)
    return out.reshape(b, h + down, w + right, c)[:, :h, :w]


class Block(nn.Module):
    """Pre-norm attention and MLP on (B,H,W,C); `window` 0: over the whole map."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float, window: int, table: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=EPSILON)
        self.attn = Attention(dim, heads, window or table)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=EPSILON)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm1(x)
        seen = in_windows(seen, self.window, self.attn) if self.window else self.attn(seen)
        x = x + self.drop_path(seen)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Patches(nn.Module):
    """Maps (B,M,H,W), H and W whole patches, to tokens (B,h,w,C)."""

    def __init__(self, maps: int, dim: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(maps, dim, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class Encoder(nn.Module):
    """(B,M,H,W) to one map (B,C,h,w). No class token, no last norm."""

    def __init__(
        self, *, maps: int, dim: int, depth: int, heads: int, mlp_ratio: float, strides: tuple[int, ...],
        positions: int, table: int, window: int, whole: Collection[int], drop_path: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stride = math.prod(strides)
        self.patch_embed: nn.Module = (
            LocalPath(maps, dim, strides, overlap=True) if len(strides) > 1 else Patches(maps, dim, strides[0])
        )
        self.positions = positions
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + positions**2, dim))
        """The first is a class token's and not used."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        drops = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, drops[i], 0 if i in whole else window, table) for i in range(depth)
        )
        init_linear(self)

    def placed(self, height: int, width: int) -> Tensor:
        """(1,height,width,C): absolute positions, resized (bicubic)."""
        table = self.pos_embed[:, 1:].unflatten(1, (self.positions, self.positions))
        if (height, width) == (self.positions, self.positions):
            return table
        resized = F.interpolate(table.permute(0, 3, 1, 2), size=(height, width), mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = x + self.placed(*x.shape[1:3])
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2).contiguous()
