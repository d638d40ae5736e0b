"""RAR's MaskGIT-VQGAN: next-token generation in random order; pixels in [0,1], no attention.

Keys of `maskgit-vqgan-imagenet-f16-256.bin`, a state dict without an entry; L levels, i from 0 (full resolution), B
residual blocks, each {norm1,conv1,norm2,conv2[,nin_shortcut]}, whose convolutions have no bias:

    encoder.conv_in.weight (no bias), encoder.down.{i}.block.{j}, encoder.mid.{j} (B), encoder.norm_out,
    encoder.conv_out (1x1, bias), decoder.conv_in (bias), decoder.mid.{j}, decoder.up.{i}.block.{j} (B),
    decoder.up.{i>0}.upsample_conv (bias), decoder.norm_out, decoder.conv_out (bias),
    quantize.embedding.weight (1024, 256).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from unforge.tokenizers import taming
from unforge.tokenizers.base import SCHEDULE, InverseRecipe, Tokenizer, TokenizerConfig
from unforge.tokenizers.codec import norm
from unforge.tokenizers.official import Official
from unforge.tokenizers.quantizers import VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class Config(TokenizerConfig):
    """Source: RAR, released code (the MaskGIT-VQGAN that it takes from open-muse)."""

    codes: int = 1024
    channels: int = 256


SMALL = replace(
    Config(), image_size=32, width=16, multipliers=(1, 2, 4), blocks=1, groups=8, codes=512, channels=32,
    unquantised_steps=200,
)  # fmt: skip

RECIPE = InverseRecipe(
    source="released configuration of iar_provenance, rar", epochs=50, batch=8, lr=5e-4, augmented=SCHEDULE
)


class ResBlock(nn.Module):
    """(B,C,h,w) to (B,D,h,w). Where D is not C, the 1x1 shortcut takes the block's own output and not its input:
    so the released network has it."""

    def __init__(self, channels: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, channels_out, 3, padding=1, bias=False)
        self.norm2 = norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        if channels != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_out, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


class Level(nn.Module):
    """Blocks at one resolution; `upsample_conv` where the decoder goes up from it."""

    def __init__(self, channels: int, channels_out: int, blocks: int, groups: int, up: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(channels if i == 0 else channels_out, channels_out, groups) for i in range(blocks)
        )
        if up:
            self.upsample_conv = nn.Conv2d(channels_out, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "upsample_conv"):
            x = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class Encoder(nn.Module):
    """(B,3,S,S) in [0,1] to (B,latent,S/f,S/f); means over 2x2 pixels between levels."""

    def __init__(self, *, width: int, multipliers: Sequence[int], blocks: int, latent: int, groups: int) -> None:
        super().__init__()
        widths = [width * multiplier for multiplier in multipliers]
        self.conv_in = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level(before, after, blocks, groups) for before, after in zip([width, *widths], widths, strict=False)
        )
        self.mid = nn.Sequential(*(ResBlock(widths[-1], widths[-1], groups) for _ in range(blocks)))
        self.norm_out = norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], latent, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for i, level in enumerate(self.down):
            x = level(x)
            if i < len(self.down) - 1:
                x = F.avg_pool2d(x, 2)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B,latent,h,w) to (B,3,f h,f w), about [0,1], not clamped."""

    def __init__(self, *, width: int, multipliers: Sequence[int], blocks: int, latent: int, groups: int) -> None:
        super().__init__()
        widths = [width * multiplier for multiplier in multipliers]
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.mid = nn.Sequential(*(ResBlock(widths[-1], widths[-1], groups) for _ in range(blocks)))
        self.up = nn.ModuleList(
            Level(before, after, blocks, groups, up=i > 0)
            for i, (after, before) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True))
        )
        self.norm_out = norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.mid(self.conv_in(features))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class RAR(Tokenizer):
    """Features (B,256,h,w) are the encoder's own."""

    RANGE = (0.0, 1.0)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.encoder = Encoder(
            width=config.width, multipliers=config.multipliers, blocks=config.blocks, latent=config.channels,
            groups=config.groups,
        )  # fmt: skip
        self.decoder = Decoder(
            width=config.width, multipliers=config.multipliers, blocks=config.blocks, latent=config.channels,
            groups=config.groups,
        )  # fmt: skip
        self.quantizer = VectorQuantizer(config.codes, config.channels)


OFFICIAL = Official(file="maskgit-vqgan-imagenet-f16-256.bin", release="RAR, Apache-2.0", entry="", name=taming.name)


def build(config: Config) -> RAR:
    """An untrained tokenizer."""
    return RAR(config)
