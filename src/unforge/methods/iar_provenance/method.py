"""The method behind `Config`: `unforge.provenance` over one tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from unforge import paths, tokenizers
from unforge.methods.iar_provenance import Config
from unforge.provenance import inverse, signals
from unforge.tokenizers import infinity, llamagen, rar, taming, var, vqdiffusion
from unforge.tokenizers.base import Quantized, Tokenizer
from unforge.types import Batch, Losses, Prediction

FAMILIES: dict[str, ModuleType] = {
    "infinity": infinity,
    "llamagen": llamagen,
    "rar": rar,
    "taming": taming,
    "var": var,
    "vqdiffusion": vqdiffusion,
}
"""Imported by name, so that what is counted becomes stale when a tokenizer changes."""


class Shapes:
    """A tokenizer on meta tensors, where torch has no autocast for `quantize` to turn off. For counting."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.image_size = tokenizer.image_size
        self.encode, self.decode, self.lookup = tokenizer.encode, tokenizer.decode, tokenizer.lookup
        self.quantizer = tokenizer.quantizer

    def quantize(self, features: Tensor) -> Quantized:
        """f_Z and tokens; nearest codes are searched as ever, by products of matrices a block at a time."""
        tokens = self.quantizer.tokens(features)
        return Quantized(features=self.lookup(tokens), tokens=tokens)


class IARProvenance(nn.Module):
    """Signals of images (B,3,S,S): lower is "made by this model". S is the tokenizer's size; others are refused."""

    EXTRAS: tuple[str, ...] = ()

    def __init__(self, config: Config, tokenizer: Tokenizer, decoder: inverse.InverseDecoder | None = None) -> None:
        """`decoder`: the inverse decoder; None: the tokenizer's own encoder."""
        super().__init__()
        self.config, self.tokenizer, self.inverse = config, tokenizer, decoder

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B,3,S,S) in [0,1] to the configured signals by name, each (B,) float64. Only the passes they need are made.

        ValueError for images of another size, or an unknown signal.
        """
        codec = Shapes(self.tokenizer) if image.is_meta else self.tokenizer
        return signals.measure(codec, image, self.config.signals, self.inverse)

    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """`signals` as `forward` gives them. No score: a signal is no probability, and its threshold is calibrated."""
        return Prediction(signals=self(image))

    def loss(self, batch: Batch) -> Losses:
        """ValueError: nothing is trained here."""
        raise ValueError("iar_provenance has no loss: stages/codebook.py and stages/inverse.py train its parts")

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """None: nothing is trained here."""
        return []


def build(config: Config, assets: Mapping[str, Path]) -> IARProvenance:
    """See the package's `build`."""
    if config.tokenizer not in FAMILIES:
        raise ValueError(f"no tokenizer {config.tokenizer!r}: there is {', '.join(FAMILIES)}")
    if "codebook" in assets:
        saved = paths.read_json(assets["codebook"] / "config.json")["tokenizer"]
        if saved != config.tokenizer:
            raise ValueError(f"{assets['codebook']}: a tokenizer of {saved}, not of {config.tokenizer}")
        tokenizer = tokenizers.load(assets["codebook"])
    else:
        family = FAMILIES[config.tokenizer]
        tokenizer = family.build(family.SMALL if config.scale == "small" else family.Config())
    decoder = None
    if config.encoder != "own":
        loaded = "inverse" in assets
        decoder = inverse.load(tokenizer, assets["inverse"]) if loaded else inverse.InverseDecoder(tokenizer)
    return IARProvenance(config, tokenizer, decoder).eval()
