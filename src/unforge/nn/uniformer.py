"""UniFormer with sparse attention in its two late stages: the backbone of SparseViT.

Module names are those of the official checkpoints, so that their state dicts load by key.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.nn.attention import MLP, Attention, DropPath, init_linear, schedule


class PatchEmbed(nn.Module):
    """Non-overlapping convolution and LayerNorm: (B,H,W,C) to (B,ceil(H/stride),ceil(W/stride),dim).

    A map that `stride` does not divide is padded at the bottom and the right by repeating its border, so that
    no false edge arises.
    """

    def __init__(self, channels: int, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Conv2d(channels, dim, stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to(x.permute(0, 3, 1, 2), self.stride)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


def embedded(tokens: Tensor | None, early: Tensor | None) -> Tensor:
    """First tokens of a backbone: of the image, of an extractor in its place, or their sum."""
    if tokens is None or early is None:
        found = early if tokens is None else tokens
        assert found is not None, "a backbone needs an image or an extractor's tokens"
        return found
    return tokens + early


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """(B,C,H,W) with H and W raised to a multiple by repeating the last row and column."""
    down, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x


class ConvMLP(nn.Module):
    """Two 1x1 convolutions with GELU, on (B,H,W,C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(self.fc2, F.gelu(pointwise(self.fc1, x)))


def pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution applied to (B,H,W,C) as one matrix product."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def on_channels(layer: nn.Module, x: Tensor) -> Tensor:
    """A (B,C,H,W) layer applied to (B,H,W,C), which is the same memory in channels_last."""
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvBlock(nn.Module):
    """Block of the two early stages: depthwise 3x3, a 5x5 depthwise mixer between 1x1 convolutions, an MLP.

    (B,H,W,C) to the same shape. Source: UniFormer, local block; SparseViT keeps it.
    """

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = ConvMLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + on_channels(self.pos_embed, x)
        mixed = on_channels(self.attn, pointwise(self.conv1, on_channels(self.norm1, x)))
        x = x + self.drop_path(pointwise(self.conv2, mixed))
        return x + self.drop_path(self.mlp(on_channels(self.norm2, x)))


class SparseBlock(nn.Module):
    """Block of the two late stages: sparse attention and MLP, each behind a layer scale. (B,H,W,C) to the same.

    Deviation from UniFormer that the paper does not mention but the released code has (and without which its
    50.35 M parameters are not reached): the MLP has a depthwise 3x3 convolution before GELU, and `pos_embed`
    is made but never called. It is kept, frozen, so that official state dicts load and DistributedDataParallel
    needs no search for unused parameters.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float, layer_scale: float, rate: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim).requires_grad_(False)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, rate)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(dim * mlp_ratio), local=True)
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addcmul(x, self.gamma_1, self.drop_path(self.attn(self.norm1(x))))
        return torch.addcmul(x, self.gamma_2, self.drop_path(self.mlp(self.norm2(x))))


class UniFormer(nn.Module):
    """Four stages of 5, 8, 20 and 7 blocks (Base). Gives the maps the heads fuse.

    `forward` takes the image (B,3,H,W), normalised, and returns the maps as (B,h,w,C): of stage 3 the map at
    the end of each run of blocks with one sparsity rate, then the same of stage 4; the last map of a stage
    goes through the stage's LayerNorm, the others are raw. At the paper's scale: four of 320 channels at 1/16
    and two of 512 at 1/32.

    `early` and `late`, when given, are added to the tokens that enter stage 1 and stage 4; without an image,
    `early` alone enters stage 1.
    Source: SparseViT, Sec. "Multi-scale Features"; sizes: UniFormer-Base with layer scale.
    """

    def __init__(
        self,
        *,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        strides: tuple[int, ...],
        head_dim: int,
        mlp_ratio: float,
        drop_path: float,
        layer_scale: float,
        rates3: tuple[int, ...],
        rates4: tuple[int, ...],
        runs3: int,
        runs4: int,
    ) -> None:
        super().__init__()
        self.strides = strides
        drops = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
        channels = (3, *dims[:-1])
        for stage in range(4):
            embed = PatchEmbed(channels[stage], dims[stage], strides[stage])
            self.add_module(f"patch_embed{stage + 1}", embed)
        first, second = depths[0], depths[0] + depths[1]
        self.blocks1 = nn.ModuleList(ConvBlock(dims[0], mlp_ratio, drops[i]) for i in range(depths[0]))
        self.norm1 = nn.LayerNorm(dims[0], eps=1e-6).requires_grad_(False)
        self.blocks2 = nn.ModuleList(ConvBlock(dims[1], mlp_ratio, drops[first + i]) for i in range(depths[1]))
        self.norm2 = nn.LayerNorm(dims[1], eps=1e-6).requires_grad_(False)
        self.blocks3 = nn.ModuleList(
            SparseBlock(dims[2], dims[2] // head_dim, mlp_ratio, drops[second + i], layer_scale, rate)
            for i, rate in enumerate(schedule(rates3, depths[2]))
        )
        self.norm3 = nn.LayerNorm(dims[2], eps=1e-6)
        third = second + depths[2]
        self.blocks4 = nn.ModuleList(
            SparseBlock(dims[3], dims[3] // head_dim, mlp_ratio, drops[third + i], layer_scale, rate)
            for i, rate in enumerate(schedule(rates4, depths[3]))
        )
        self.norm4 = nn.LayerNorm(dims[3], eps=1e-6)
        self.runs = (-(-depths[2] // runs3), -(-depths[3] // runs4))
        self.channels = [dims[2]] * -(-depths[2] // self.runs[0]) + [dims[3]] * -(-depths[3] // self.runs[1])
        init_linear(self)

    def without_image(self) -> None:
        """Only an extractor's tokens will enter: the image's patch embedding goes."""
        del self.patch_embed1

    def tokens(self, image: Tensor | None, early: Tensor | None = None) -> Tensor:
        """The tokens that enter stage 3. `image` (B,3,H,W); returns (B,h,w,C)."""
        x = embedded(None if image is None else self.patch_embed1(image.permute(0, 2, 3, 1)), early)
        for block in self.blocks1:
            x = block(x)
        x = self.patch_embed2(x)
        for block in self.blocks2:
            x = block(x)
        return self.patch_embed3(x)

    def forward(self, image: Tensor | None, early: Tensor | None = None, late: Tensor | None = None) -> list[Tensor]:
        maps: list[Tensor] = []
        x = self.tokens(image, early)
        for i, block in enumerate(self.blocks3, start=1):
            x = block(x)
            if i == len(self.blocks3):
                maps.append(self.norm3(x))
            elif i % self.runs[0] == 0:
                maps.append(x)
        x = self.patch_embed4(x)
        if late is not None:
            x = x + late
        for i, block in enumerate(self.blocks4, start=1):
            x = block(x)
            if i == len(self.blocks4):
                maps.append(self.norm4(x))
            elif i % self.runs[1] == 0:
                maps.append(x)
        return maps

    def attention_maps(self, image: Tensor | None, early: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attention of the first and the last block of stage 3, as `Attention.weights` gives it."""
        x = self.tokens(image, early)
        first = self.blocks3[0]
        before = first.attn.weights(first.norm1(x))
        for block in self.blocks3[:-1]:
            x = block(x)
        last = self.blocks3[-1]
        return before, last.attn.weights(last.norm1(x))
