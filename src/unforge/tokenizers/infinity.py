"""Infinity's bitwise VQVAE: next-scale generation over 32 bits a token, 13 scales.

Keys of `infinity_vae_d32reg.pth`, under `vae`: as in `taming` without attention, without quant_conv,
post_quant_conv and a codebook. The released modules wrap each convolution and norm once more, and their loader takes
both spellings, so both are accepted: `encoder.conv_in.weight` and `encoder.conv_in.conv.weight`,
`encoder.norm_out.weight` and `encoder.norm_out.norm.weight`. Buffers of the quantizer are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from unforge.tokenizers.base import InverseRecipe, Tokenizer, TokenizerConfig
from unforge.tokenizers.codec import Decoder, Encoder
from unforge.tokenizers.multiscale import BinarySpherical
from unforge.tokenizers.official import Official


@dataclass(frozen=True, kw_only=True)
class Config(TokenizerConfig):
    """Source: Infinity, released code (d = 32, `1M` pixels, square)."""

    image_size: int = 1024
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    bits: int = 32
    """Of a token: the channels of the features."""
    scales: tuple[int, ...] = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)


SMALL = replace(
    Config(), image_size=32, width=16, multipliers=(1, 2, 3), blocks=1, groups=8, bits=12, scales=(1, 2, 4, 8),
    unquantised_steps=200,
)  # fmt: skip

RECIPE = InverseRecipe(
    source="released configuration of iar_provenance, infinity", epochs=10, batch=2, lr=1e-5, betas=(0.9, 0.95)
)


class Infinity(Tokenizer):
    """Features (B,32,h,w) are the encoder's own, not normalised: they compare with the sum of the scales' codes."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.scales[-1] != self.grid or list(config.scales) != sorted(config.scales):
            raise ValueError(f"scales {config.scales}: give them rising to {self.grid}, the side of the features")
        self.encoder = Encoder(
            width=config.width, multipliers=config.multipliers, blocks=config.blocks, latent=config.bits,
            groups=config.groups, attention="none",
        )  # fmt: skip
        self.decoder = Decoder(
            width=config.width, multipliers=config.multipliers, blocks=config.blocks, latent=config.bits,
            groups=config.groups, attention="none",
        )  # fmt: skip
        self.quantizer = BinarySpherical(config.bits, scales=config.scales)


OFFICIAL = Official(
    file="infinity_vae_d32reg.pth",
    release="Infinity, MIT",
    entry="vae",
    name=lambda key, config: key,
    same=(
        (r"(conv_in|conv_out|conv1|conv2|nin_shortcut|sample\.conv)\.conv\.(weight|bias)$", r"\1.\2"),
        (r"(norm1|norm2|norm_out)\.norm\.(weight|bias)$", r"\1.\2"),
    ),
    ignored=(r"quantizer?\..*",),
)


def build(config: Config) -> Infinity:
    """An untrained tokenizer."""
    return Infinity(config)
