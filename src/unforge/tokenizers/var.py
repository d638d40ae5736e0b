"""VAR's multi-scale VQVAE: next-scale generation over residual codes of ten scales.

Keys of `vae_ch160v4096z32.pth`, a state dict without an entry: as in `taming`, but `attn.{j}` and `mid.attn_1` have
{norm,qkv,proj_out}, `quant_conv` and `post_quant_conv` are 3x3, and beside quantize.embedding.weight (4096, 32) there
are quantize.quant_resi.qresi_ls.{0..3}.{weight,bias} (phi) and quantize.ema_vocab_hit_SV (10, 4096): a record of
training that is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from torch import nn

from unforge.tokenizers.base import InverseRecipe, Tokenizer, TokenizerConfig
from unforge.tokenizers.codec import Decoder, Encoder
from unforge.tokenizers.multiscale import MultiScale
from unforge.tokenizers.official import Official


@dataclass(frozen=True, kw_only=True)
class Config(TokenizerConfig):
    """Source: VAR, released code (`vae_ch160v4096z32`)."""

    width: int = 160
    codes: int = 4096
    channels: int = 32
    """Of a code, and between the networks."""
    scales: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    """Sides of the token maps, coarse to fine."""
    phis: int = 4


SMALL = replace(
    Config(), image_size=32, width=16, multipliers=(1, 2, 3), blocks=1, groups=8, codes=256, channels=16,
    scales=(1, 2, 4, 8), unquantised_steps=200,
)  # fmt: skip


class VAR(Tokenizer):
    """Features (B,32,h,w) come from a 3x3 convolution after the encoder, which the inverse decoder trains too."""

    INVERSE = ("encoder", "quant_conv")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.scales[-1] != self.grid or list(config.scales) != sorted(config.scales):
            raise ValueError(f"scales {config.scales}: give them rising to {self.grid}, the side of the features")
        self.encoder = Encoder(
            width=config.width, multipliers=config.multipliers, blocks=config.blocks, latent=config.channels,
            groups=config.groups, attention="fused",
        )  # fmt: skip
        self.decoder = Decoder(
            width=config.width, multipliers=config.multipliers, blocks=config.blocks, latent=config.channels,
            groups=config.groups, attention="fused",
        )  # fmt: skip
        self.quantizer = MultiScale(config.codes, config.channels, scales=config.scales, phis=config.phis)
        self.quant_conv = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.channels, config.channels, 3, padding=1)


RECIPE = InverseRecipe(
    source="released configuration of iar_provenance, var",
    epochs=10,
    batch=16,
    lr=5e-5,
    modules=VAR.INVERSE,
)


def _name(key: str, config: TokenizerConfig) -> str:
    if key == "quantizer.codebook":
        return "quantize.embedding.weight"
    return re.sub(r"^quantizer\.phi\.", "quantize.quant_resi.qresi_ls.", key)


OFFICIAL = Official(
    file="vae_ch160v4096z32.pth",
    release="VAR, MIT",
    entry="",
    name=_name,
    ignored=(r"quantize\.ema_vocab_hit_SV",),
)


def build(config: Config) -> VAR:
    """An untrained tokenizer."""
    return VAR(config)
