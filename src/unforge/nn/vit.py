"""Plain ViT and VOLO as backbones for localisation: one grid of tokens in, one out, no class token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.nn.attention import MLP, DropPath, TransformerBlock, init_linear, schedule
from unforge.nn.uniformer import embedded, pad_to


class PositionEmbedding(nn.Module):
    """Learnt position of each token of a `grid` x `grid` map, resized (bicubic) to maps of another size."""

    def __init__(self, dim: int, grid: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dim, grid, grid))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B,H,W,C)."""
        weight: Tensor = self.weight
        if x.shape[1:3] != weight.shape[2:]:
            weight = F.interpolate(weight, size=tuple(x.shape[1:3]), mode="bicubic", align_corners=False)
        return x + weight.permute(0, 2, 3, 1)


class PlainViT(nn.Module):
    """ViT: patch embedding, learnt positions, `depth` equal blocks, LayerNorm.

    `forward` takes (B,3,H,W), normalised, and returns a list of one map (B,h,w,C); images are padded to whole
    patches. `strides` has one entry for the plain patch embedding; more make a stack with GELU between.

    Source: ViT; SparseViT, Table 9 ("vanilla ViT"), which puts sparse attention in it.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        drop_path: float,
        strides: tuple[int, ...],
        grid: int,
        rates: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.strides = strides
        layers: list[nn.Module] = []
        for i, stride in enumerate(strides):
            layers += [nn.Conv2d(dim if i else 3, dim, stride, stride=stride), nn.GELU()]
        self.patch_embed = nn.Sequential(*layers[:-1])
        self.pos_embed = PositionEmbedding(dim, grid)
        drops = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, heads, mlp_ratio, drops[i], rate) for i, rate in enumerate(schedule(rates, depth))
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.channels = [dim]
        init_linear(self)

    def without_image(self) -> None:
        """Only an extractor's tokens will enter: the image's patch embedding goes."""
        del self.patch_embed

    def tokens(self, image: Tensor | None, early: Tensor | None = None) -> Tensor:
        """(B,h,w,C) that enter the first block."""
        x = None
        if image is not None:
            x = self.patch_embed(pad_to(image, math.prod(self.strides))).permute(0, 2, 3, 1).contiguous()
        return self.pos_embed(embedded(x, early))

    def forward(self, image: Tensor | None, early: Tensor | None = None, late: Tensor | None = None) -> list[Tensor]:
        x = self.tokens(image, early)
        for block in self.blocks:
            x = block(x)
        return [self.norm(x if late is None else x + late)]

    def attention_maps(self, image: Tensor | None, early: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attention of the first and the last block, as `Attention.weights` gives it."""
        return _first_and_last(self.blocks, self.tokens(image, early))


class OutlookAttention(nn.Module):
    """Each token weighs the 3x3 neighbourhoods around it, the weights coming from the token alone.

    (B,H,W,C) to the same. Source: VOLO, outlook attention with window 3 and stride 2.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.v = nn.Linear(dim, dim, bias=False)
        self.attn = nn.Linear(dim, heads * 81)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        d = c // self.heads
        value = F.unfold(self.v(x).permute(0, 3, 1, 2), kernel_size=3, padding=1, stride=2)
        places = value.shape[-1]
        value = value.view(b, self.heads, d, 9, places).permute(0, 1, 4, 3, 2)
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), 2, stride=2, ceil_mode=True).permute(0, 2, 3, 1)
        weight = self.attn(pooled).view(b, places, self.heads, 9, 9).permute(0, 2, 1, 3, 4)
        weight = (weight / math.sqrt(d)).softmax(-1)
        mixed = (weight @ value).permute(0, 1, 4, 3, 2).reshape(b, c * 9, places)
        folded = F.fold(mixed, output_size=(h, w), kernel_size=3, padding=1, stride=2)
        return self.proj(folded.permute(0, 2, 3, 1))


class Outlooker(nn.Module):
    """Pre-norm outlook attention and MLP on (B,H,W,C)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = OutlookAttention(dim, heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VOLO(nn.Module):
    """Outlookers on a fine grid, then transformer blocks on one half as fine.

    `forward` takes (B,3,H,W), normalised, and returns a list of one map (B,h,w,C). `dims` and `depths` are of
    the outlook and the transformer part; `strides` of the convolutional stem: the first convolution, then the
    patch embedding. Sparse rates apply to the transformer blocks: outlook attention is local already.

    Source: VOLO; SparseViT, Table 9. Deviation: no class-attention layers, which only classification needs.
    """

    def __init__(
        self,
        *,
        dims: tuple[int, int],
        depths: tuple[int, int],
        heads: tuple[int, int],
        hidden: int,
        mlp_ratio: float,
        drop_path: float,
        strides: tuple[int, int],
        grid: int,
        rates: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.strides = strides
        layers: list[nn.Module] = []
        for i, (kernel, stride) in enumerate(((7, strides[0]), (3, 1), (3, 1))):
            layers.append(nn.Conv2d(hidden if i else 3, hidden, kernel, stride, kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(hidden), nn.ReLU()]
        self.patch_embed = nn.Sequential(*layers, nn.Conv2d(hidden, dims[0], strides[1], stride=strides[1]))
        drops = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
        self.outlookers = nn.ModuleList(Outlooker(dims[0], heads[0], mlp_ratio, drops[i]) for i in range(depths[0]))
        self.downsample = nn.Conv2d(dims[0], dims[1], 2, stride=2)
        self.pos_embed = PositionEmbedding(dims[1], grid)
        self.blocks = nn.ModuleList(
            TransformerBlock(dims[1], heads[1], mlp_ratio, drops[depths[0] + i], rate)
            for i, rate in enumerate(schedule(rates, depths[1]))
        )
        self.norm = nn.LayerNorm(dims[1], eps=1e-6)
        self.channels = [dims[1]]
        init_linear(self)

    def without_image(self) -> None:
        """Only an extractor's tokens will enter: the image's patch embedding goes."""
        del self.patch_embed

    def tokens(self, image: Tensor | None, early: Tensor | None = None) -> Tensor:
        """(B,h,w,C) that enter the first transformer block."""
        if early is not None:
            early = F.pad(early, (0, 0, 0, early.shape[2] % 2, 0, early.shape[1] % 2))
        x = None
        if image is not None:
            padded = pad_to(image, 2 * math.prod(self.strides))
            x = self.patch_embed(padded).permute(0, 2, 3, 1).contiguous()
        x = embedded(x, early)
        for block in self.outlookers:
            x = block(x)
        return self.pos_embed(self.downsample(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous())

    def forward(self, image: Tensor | None, early: Tensor | None = None, late: Tensor | None = None) -> list[Tensor]:
        x = self.tokens(image, early)
        for block in self.blocks:
            x = block(x)
        return [self.norm(x if late is None else x + late)]

    def attention_maps(self, image: Tensor | None, early: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attention of the first and the last transformer block, as `Attention.weights` gives it."""
        return _first_and_last(self.blocks, self.tokens(image, early))


def _first_and_last(blocks: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor]:
    before = blocks[0].attn.weights(blocks[0].norm1(x))
    for block in blocks[:-1]:
        x = block(x)
    return before, blocks[-1].attn.weights(blocks[-1].norm1(x))
