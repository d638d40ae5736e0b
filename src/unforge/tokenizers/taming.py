"""Taming Transformers' VQGAN, f = 16 with 16,384 codes: next-token generation.

Keys of `last.ckpt`, under `state_dict`; L levels, i from 0 (full resolution), B residual blocks:

    encoder.conv_in, encoder.down.{i}.block.{j}.{norm1,conv1,norm2,conv2[,nin_shortcut]},
    encoder.down.{L-1}.attn.{j}.{norm,q,k,v,proj_out}, encoder.down.{i<L-1}.downsample.conv,
    encoder.mid.{block_1,attn_1,block_2}, encoder.norm_out, encoder.conv_out,
    decoder.conv_in, decoder.mid, decoder.up.{i}.block.{j} (B + 1), decoder.up.{L-1}.attn.{j},
    decoder.up.{i>0}.upsample.conv, decoder.norm_out, decoder.conv_out, quant_conv, post_quant_conv (each .weight
    and .bias; the two 1x1), quantize.embedding.weight (16384, 256); loss.* (discriminator) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from unforge.tokenizers.base import SCHEDULE, InverseRecipe, Tokenizer, TokenizerConfig
from unforge.tokenizers.codec import Decoder, Encoder
from unforge.tokenizers.official import Official
from unforge.tokenizers.quantizers import VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class Config(TokenizerConfig):
    """Source: Taming Transformers, released configuration `vqgan_imagenet_f16_16384`."""

    latent: int = 256
    codes: int = 16384
    channels: int = 256


SMALL = replace(
    Config(), image_size=32, width=16, multipliers=(1, 2, 3), blocks=1, groups=8, latent=48, codes=512, channels=32,
    unquantised_steps=200,
)  # fmt: skip

RECIPE = InverseRecipe(
    source="released configuration of iar_provenance, taming", epochs=50, batch=8, lr=5e-4, augmented=SCHEDULE
)


class Taming(Tokenizer):
    """Features (B,256,h,w) come from a 1x1 convolution after the encoder, which the inverse decoder leaves alone."""

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
        self.quantizer = VectorQuantizer(config.codes, config.channels)
        self.quant_conv = nn.Conv2d(config.latent, config.channels, 1)
        self.post_quant_conv = nn.Conv2d(config.channels, config.latent, 1)


def name(key: str, config: TokenizerConfig) -> str:
    """Key in the released file of a key of ours."""
    return "quantize.embedding.weight" if key == "quantizer.codebook" else key


OFFICIAL = Official(
    file="last.ckpt",
    release="Taming Transformers, vqgan_imagenet_f16_16384, MIT",
    entry="state_dict",
    name=name,
    ignored=(r"loss\..*",),
)


def build(config: Config) -> Taming:
    """An untrained tokenizer."""
    return Taming(config)
