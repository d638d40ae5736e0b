"""Configurations of PSCC-Net: the released network and a small one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from unforge.methods import _localisers
from unforge.types import Recipe

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        source="PSCC-Net (Liu et al. 2022) and its released code",
        optimiser="adam",
        # Deviation: the released code halves the rate every 5 epochs, from 2e-4 to 1.25e-5; a half cosine joins them.
        lr=2e-4,
        min_lr=1.25e-5,
        batch=10,
        epochs=25,
        samples_per_epoch=100_000,
        augment=("dihedral",),
    ),
    "small": _localisers.SMALL_RECIPE,
}
"""`paper`, and one for seconds on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """PSCC-Net as released: HRNet-W18-small-v2 without the stem's strides, and two heads."""

    source: Literal["rgb", "stem"] = "rgb"
    """What the trunk sees: the image; or, ours, the maps of `nn.extractors.TruncatedStem`."""

    stem: int = 64
    """Channels of the stem and inner width of the first stage's bottlenecks."""
    strides: tuple[int, int] = (1, 1)
    """Of the two convolutions of the stem."""
    blocks: int = 2
    """Bottlenecks of the first stage."""
    expansion: int = 4
    """Of the first stage's bottlenecks."""
    widths: tuple[int, int, int, int] = (18, 36, 72, 144)
    depth: int = 2
    """Basic blocks in each branch of a stage."""
    momentum: float = 0.01
    """Of batch norm's running statistics."""

    reductions: tuple[int, int, int, int] = (4, 2, 2, 1)
    """By how much the sides of each map shrink before correlation, finest first."""
    hidden: int = 16
    """Channels before each mask."""
    detection: int = 128
    """Channels of the detection head's last map."""
    classifier: int = 16
    head_size: int | None = 256
    """Side (pixels) to which the finest map is resized before the heads, the others in proportion; None: its own
    size, made a multiple of 8."""
    authentic: float = 0.25
    """Share of authentic images in training, from which the classes' weights follow."""
    mask: float = 1.0
    """Weight of each of the four masks' losses. Source: released code."""

    input_size: int | None = 256
    """Whole images are resized to this many pixels squared in training; testing takes them as they are."""
    count_size: int = 256
    """Size for which parameters and MACs are printed. Source: SparseViT, Table 5: 45.7 G, which is fvcore's figure
    with batch norms counted as in training (5 per value); at inference (2 per value) it is 45.31 G."""
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(
    Config(),
    stem=8,
    strides=(2, 1),
    blocks=1,
    expansion=2,
    widths=(8, 10, 14, 20),
    depth=1,
    momentum=0.1,
    reductions=(4, 2, 2, 1),
    detection=32,
    head_size=None,
    authentic=0.5,
    input_size=None,
    recipe=RECIPES["small"],
)
"""About 157,000 parameters (most in the correlations), masks on grids of 1/2, 1/4, 1/8 and 1/16."""

VARIANTS: dict[str, Config] = {"": Config(), "stem": replace(Config(), source="stem")}
"""`""`: as released; `stem` (ours): what lets a small network learn from scratch."""
