"""Configurations of MVSS-Net: the released network and a small one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from unforge.methods import _localisers
from unforge.types import Recipe

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        source="MVSS-Net (Chen et al. 2021), Sec. 4.1; no training code was released",
        optimiser="adam",
        lr=1e-4,
        min_lr=1e-7,
        # ASSUMPTION(paper): batch and length are IMDL-BenCo's (1 x 8 accumulated, 200 epochs of CASIAv2).
        batch=8,
        epochs=200,
        samples_per_epoch=12614,
        # flips, blur, JPEG, naive copy-paste or OpenCV inpainting of a square; ASSUMPTION(paper): their order.
        augment=("copy_move", "inpaint", "flip_horizontal", "flip_vertical", "blur", "jpeg"),
    ),
    "small": _localisers.SMALL_RECIPE,
}
"""`paper`, and one for seconds on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """MVSS-Net as released. Sizes are the released code's."""

    noise: Literal["bayar", "stem"] = "bayar"
    """What the noise branch sees: the constrained convolution of the grey image; or, ours, the maps of
    `nn.extractors.TruncatedStem`."""

    stem: int = 64
    """Channels after the first convolution of each ResNet."""
    width: int = 64
    """Inner width of the first stage's bottlenecks; it doubles from stage to stage."""
    expansion: int = 4
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    strides: tuple[int, int, int, int, int] = (2, 2, 2, 2, 1)
    """Of the first convolution, of the max pooling (1: none) and of stages 2, 3 and 4."""
    rates: tuple[int, ...] = (1, 2, 4)
    """Dilations of the last stage's blocks."""
    classes: int = 1000
    """Width of the unused ImageNet classifier of each ResNet; 0: there is none."""
    head: int = 1024
    """Channels of dual attention."""
    dropout: float = 0.1

    mask: float = 0.16
    """Weight of Dice on the mask. Source: MVSS-Net, Eq. 7 (alpha)."""
    image: float = 0.04
    """Weight of binary cross-entropy on the map's maximum. Source: MVSS-Net, Eq. 7 (beta)."""
    edge: float = 0.80
    """Weight of Dice on the edges. Source: MVSS-Net, Eq. 7."""
    bce: float = 0.0
    """Weight of binary cross-entropy on all pixels: not of the paper, for runs of some hundred steps."""

    input_size: int | None = 512
    """Images are resized to this many pixels squared; None: they are used as they are."""
    count_size: int = 512
    """Size for which parameters and MACs are printed. Source: SparseViT, Table 5: 167.0 G, which is fvcore's figure
    with batch norms counted as in training (5 per value); at inference (2 per value) it is 166.66 G."""
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(
    Config(),
    stem=8,
    width=6,
    expansion=2,
    depths=(1, 1, 1, 1),
    strides=(2, 1, 2, 2, 1),
    rates=(2,),
    classes=0,
    head=12,
    dropout=0.0,
    input_size=None,
    recipe=RECIPES["small"],
)
"""About 140,000 parameters, the mask on a grid of 1/8."""

VARIANTS: dict[str, Config] = {"": Config(), "stem": replace(Config(), noise="stem")}
"""`""`: as released; `stem` (ours): what lets a small network learn from scratch."""
