"""Provenance of images from autoregressive models: the signals of one tokenizer for images of its size.

Variants are what the paper compares in time, for each family: QuantLoss, the two baselines, and its three signals
together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from unforge.types import Recipe

SIZES = {"llamagen": 384, "rar": 256, "taming": 256, "var": 256, "infinity": 1024, "vqdiffusion": 256}
"""Side in pixels of each family's images at paper scale."""

SIGNALS: dict[str, tuple[str, ...]] = {
    "quant_loss": ("quant_loss",),
    "reconstruction": ("reconstruction",),
    "aedr": ("enc_loss_calibrated",),
    "signals": ("quant_loss", "enc_loss_calibrated", "combined"),
}
"""What is compared in time. AEDR as the paper has it is calibrated EncLoss with the own encoder."""

NOTHING = Recipe(
    source="nothing is trained here: the stages `codebook` and `inverse` train what this method is built from",
    optimiser="adam",
    lr=0.0,
    min_lr=0.0,
    batch=1,
    epochs=0,
    samples_per_epoch=0,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Whose images, with which encoder, by which signals."""

    tokenizer: str = "llamagen"
    """A family of `unforge.tokenizers`."""
    scale: Literal["small", "paper"] = "paper"
    """Size of a tokenizer that is built untrained; one that is loaded has its own."""
    encoder: Literal["own", "inverse", "augmented"] = "own"
    """The tokenizer's, or an inverse decoder; the two kinds differ in their training alone. They cost the same."""
    signals: tuple[str, ...] = ("quant_loss", "enc_loss_calibrated", "combined")
    """Names of `provenance.signals.SIGNALS`. What they have in common is computed once."""
    count_size: int = SIZES["llamagen"]
    recipe: Recipe = NOTHING


SMALL = replace(Config(), scale="small")
VARIANTS: dict[str, Config] = {
    "": Config(),
    **{
        f"{family}_{name}": replace(Config(), tokenizer=family, signals=signals, count_size=size)
        for family, size in SIZES.items()
        for name, signals in SIGNALS.items()
    },
}


def build(config: Config, assets: Mapping[str, Path]) -> Any:
    """The method for `config`. Assets: `codebook`, a tokenizer's folder, and `inverse`, an inverse decoder's; without
    them both are untrained. ValueError for a codebook of another family."""
    from unforge.methods.iar_provenance import method

    return method.build(config, assets)
