"""LlamaGen's VQ-16: next-token generation over an l2-normalised codebook of 8 channels.

Keys of `vq_ds16_c2i.pt`, under `model`; L levels, i from 0, B residual blocks:

    encoder.conv_in, encoder.conv_blocks.{i}.res.{j}.{norm1,conv1,norm2,conv2[,nin_shortcut]},
    encoder.conv_blocks.{L-1}.attn.{j}.{norm,q,k,v,proj_out}, encoder.conv_blocks.{i<L-1}.downsample.conv,
    encoder.mid.{0,1,2} (block, attention, block), encoder.norm_out, encoder.conv_out,
    decoder the same with B + 1 blocks, `upsample.conv` but in the last, and conv_blocks in the order they run:
    0 is the lowest resolution; quant_conv, post_quant_conv (each .weight and .bias, 1x1),
    quantize.embedding.weight (16384, 8), quantize.codebook_used (65536,): a record of training that is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from torch import Tensor, nn

from unforge.tokenizers.base import InverseRecipe, Tokenizer, TokenizerConfig, normalised
from unforge.tokenizers.codec import Decoder, Encoder
from unforge.tokenizers.official import Official
from unforge.tokenizers.quantizers import VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class Config(TokenizerConfig):
    """Source: LlamaGen, VQ-16 (released code); 384 pixels: released configuration of iar_provenance."""

    image_size: int = 384
    latent: int = 256
    """Channels between the networks and the quantizer's 1x1 convolutions."""
    codes: int = 16384
    channels: int = 8
    """Of a code."""


SMALL = replace(
    Config(), image_size=32, width=16, multipliers=(1, 2, 3), blocks=1, groups=8, latent=48, codes=512,
    unquantised_steps=200,
)  # fmt: skip

RECIPE = InverseRecipe(
    source="released configuration of iar_provenance, llamagen", epochs=25, batch=8, lr=1e-5, betas=(0.9, 0.95)
)


class LlamaGen(Tokenizer):
    """Features (B,8,h,w) are l2-normalised, as the codes are."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.encoder = Encoder(
            width=config.width, multipliers=config.multipliers, blocks=config.blocks, latent=config.latent,
            groups=config.groups, attention="separate",
        )  # fmt: skip
        self.decoder = Decoder(
            width=config.width, multipliers=config.multipliers, blocks=config.blocks, latent=config.latent,
            groups=config.groups, attention="separate",
        )  # fmt: skip
        self.quantizer = VectorQuantizer(config.codes, config.channels, normalised=True)
        self.quant_conv = nn.Conv2d(config.latent, config.channels, 1)
        self.post_quant_conv = nn.Conv2d(config.channels, config.latent, 1)

    def encode(self, image: Tensor) -> Tensor:
        return normalised(super().encode(image))


def _name(key: str, config: TokenizerConfig) -> str:
    if key == "quantizer.codebook":
        return "quantize.embedding.weight"
    lowest = len(config.multipliers) - 1
    key = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.conv_blocks.{lowest - int(m[1])}.", key)
    key = re.sub(r"^encoder\.down\.", "encoder.conv_blocks.", key)
    key = re.sub(r"\.block\.(\d+)\.", r".res.\1.", key)
    for ours, theirs in (("block_1", "0"), ("attn_1", "1"), ("block_2", "2")):
        key = key.replace(f".mid.{ours}.", f".mid.{theirs}.")
    return key


OFFICIAL = Official(
    file="vq_ds16_c2i.pt",
    release="LlamaGen, MIT",
    entry="model",
    name=_name,
    ignored=(r"quantize\.codebook_used",),
)


def build(config: Config) -> LlamaGen:
    """An untrained tokenizer."""
    return LlamaGen(config)
