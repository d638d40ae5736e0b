"""LLaVA with a SigLIP 2 tower in the place of CLIP's: AAP's second vision encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unforge.backbones import llava

TRAINED_ON = "pretraining"
NEEDS = ("forensic",)

Config = llava.Siglip
SMALL = llava.SMALL_SIGLIP


def build(config: llava.Config, assets: Mapping[str, Path]) -> llava.Llava:
    """As `llava.build`, and takes the same assets. ValueError for a checkpoint with another tower."""
    model = llava.build(config, assets)
    if model.config.tower != "siglip":
        raise ValueError(f"{assets['checkpoint']} has a {model.config.tower} tower: one with siglip is accepted")
    return model
