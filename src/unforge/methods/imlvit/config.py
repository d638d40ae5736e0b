"""Configurations of IML-ViT: the released network and a small one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from unforge.methods import _localisers
from unforge.types import Recipe

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        source="IML-ViT (Ma et al. 2023): released code and its README",
        optimiser="adamw",
        lr=1e-4,
        min_lr=5e-7,
        batch=1,
        accumulate=8,
        epochs=200,
        # ASSUMPTION(paper): an epoch is CASIAv2 as in IMDL-BenCo.
        samples_per_epoch=12614,
        warmup_epochs=4.0,
        weight_decay=0.05,
        dtype="float16",
        augment=_localisers.CODE_AUGMENT,
    ),
    "small": _localisers.SMALL_RECIPE,
}
"""`paper`, and one for seconds on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """IML-ViT as released. Sizes are the released code's."""

    source: Literal["rgb", "stem"] = "rgb"
    """What the encoder sees: the image; or, ours, the maps of `nn.extractors.TruncatedStem`."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    strides: tuple[int, ...] = (16,)
    """Of the patch embedding: one convolution without overlap; several (ours) are overlapping 3x3 convolutions with
    batch norm, from which a network that starts from nothing learns."""
    positions: int = 14
    """Side of the table of absolute positions, which is resized (bicubic) to the map."""
    table: int = 64
    """Side of the map that global attention has relative positions for."""
    window: int = 14
    """Side of the windows (tokens)."""
    whole: tuple[int, ...] = (2, 5, 8, 11)
    """Blocks that attend over the whole map; the others within windows."""
    drop_path: float = 0.1
    """Of the last block; linear from 0."""

    pyramid: int = 256
    """Channels of each level."""
    dropout: float = 0.5

    edge: float = 20.0
    """Weight of binary cross-entropy within the edge band (lambda)."""
    band: int = 7
    """Width of the cross that draws the band (pixels)."""

    input_size: int | None = 1024
    """Images are padded with zeros at the bottom and the right to this many pixels squared, and cut there where they
    are larger; None: they are used as they are. Deviation: the training loop knows crops but no padding with zeros, so
    a training image smaller than this is continued by its edge pixels, with mask 0, and a larger one is cut anywhere.
    """
    count_size: int = 1024
    """Size for which parameters and MACs are counted."""
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(
    Config(),
    dim=48,
    depth=2,
    heads=4,
    mlp_ratio=2.0,
    strides=(2, 2, 2),
    positions=8,
    table=32,
    window=4,
    whole=(1,),
    drop_path=0.0,
    pyramid=16,
    dropout=0.0,
    input_size=None,
    recipe=RECIPES["small"],
)
"""About 110,000 parameters, tokens of 8 pixels, the mask on a grid of 1/2."""

VARIANTS: dict[str, Config] = {"": Config(), "stem": replace(Config(), source="stem")}
"""`""`: as released; `stem` (ours): what lets a small network learn from scratch."""
