"""LLaVA with the larger language model: LLaVA-1.5-13B, AAP's second size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unforge.backbones import llava

TRAINED_ON = "pretraining"
NEEDS = ("forensic",)


@dataclass(frozen=True, kw_only=True)
class Config(llava.Config):
    """Sizes. Source: the defaults are CLIP-L/14-336 and Vicuna-13B (llava-hf/llava-1.5-13b-hf)."""

    image_size: int = 336
    width: int = 5120
    layers: int = 40
    heads: int = 40
    mlp: int = 13824
    positions: int = 4096


_SMALL = {item.name: getattr(llava.SMALL, item.name) for item in dataclasses.fields(llava.Config)}
SMALL = Config(**(_SMALL | {"width": 128, "layers": 3, "mlp": 256}))
"""As the small `llava`, with a wider and deeper language model."""


def build(config: llava.Config, assets: Mapping[str, Path]) -> llava.Llava:
    """As `llava.build`, and takes the same assets."""
    return llava.build(config, assets)
