"""Encoder and decoder of the VQGAN family: Taming, LlamaGen, VAR and Infinity differ in attention and widths only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

AttentionKind = Literal["none", "separate", "fused"]
"""`separate`: three 1x1 convolutions for query, key and value (Taming, LlamaGen); `fused`: one (VAR); `none`
(Infinity). Attention stands after each block of the lowest level and in the middle."""


def norm(channels: int, groups: int) -> nn.GroupNorm:
    """Group norm with epsilon 1e-6, as every released tokenizer has it."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """(B,C,h,w) to (B,D,h,w): twice norm, SiLU and 3x3 convolution, beside a shortcut (1x1 where D is not C)."""

    def __init__(self, channels: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, channels_out, 3, padding=1)
        self.norm2 = norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels != channels_out:
            self.nin_shortcut = nn.Conv2d(channels, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head over all places of a map (B,C,h,w), added to it."""

    def __init__(self, channels: int, groups: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.norm = norm(channels, groups)
        if fused:
            self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        else:
            self.q = nn.Conv2d(channels, channels, 1)
            self.k = nn.Conv2d(channels, channels, 1)
            self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        parts = self.qkv(h).chunk(3, dim=1) if self.fused else (self.q(h), self.k(h), self.v(h))
        q, k, v = (part.flatten(2).transpose(1, 2)[:, None] for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """3x3 convolution of stride 2; one row and column of zeros at the bottom and right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side (nearest), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks at one resolution, each followed by attention where the level has it."""

    def __init__(
        self, channels: int, channels_out: int, blocks: int, groups: int, attention: AttentionKind = "none"
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(channels if i == 0 else channels_out, channels_out, groups) for i in range(blocks)
        )
        count = 0 if attention == "none" else blocks
        self.attn = nn.ModuleList(Attention(channels_out, groups, attention == "fused") for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class Middle(nn.Module):
    """Block, attention, block."""

    def __init__(self, channels: int, groups: int, attention: AttentionKind) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        if attention != "none":
            self.attn_1 = Attention(channels, groups, attention == "fused")
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        if hasattr(self, "attn_1"):
            x = self.attn_1(x)
        return self.block_2(x)


class Encoder(nn.Module):
    """(B,3,S,S) in [-1,1] to (B,latent,S/f,S/f), f = 2 ** (levels - 1)."""

    def __init__(
        self, *, width: int, multipliers: Sequence[int], blocks: int, latent: int, groups: int, attention: AttentionKind
    ) -> None:
        super().__init__()
        widths = [width * multiplier for multiplier in multipliers]
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, after) in enumerate(zip([width, *widths], widths, strict=False)):
            last = i == len(widths) - 1
            level = Level(before, after, blocks, groups, attention if last else "none")
            if not last:
                level.downsample = Downsample(after)
            self.down.append(level)
        self.mid = Middle(widths[-1], groups, attention)
        self.norm_out = norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], latent, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B,latent,h,w) to (B,3,f h,f w), about [-1,1], not clamped; a level has one block more than the encoder's."""

    def __init__(
        self, *, width: int, multipliers: Sequence[int], blocks: int, latent: int, groups: int, attention: AttentionKind
    ) -> None:
        super().__init__()
        widths = [width * multiplier for multiplier in multipliers]
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups, attention)
        self.up = nn.ModuleList()
        for i, (after, before) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
            level = Level(before, after, blocks + 1, groups, attention if i == len(widths) - 1 else "none")
            if i > 0:
                level.upsample = Upsample(after)
            self.up.append(level)
        self.norm_out = norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.mid(self.conv_in(features))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))
