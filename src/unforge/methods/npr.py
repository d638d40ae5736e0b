"""NPR: neighbouring pixel relations, what each pixel differs by from the first of its 2x2 block.

Source: Tan et al., CVPR 2024, and facts of its code; none of the code itself (it has no licence).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from unforge.methods import _detectors
from unforge.nn import detector
from unforge.nn.detector import Sizes, View
from unforge.types import Recipe

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        # Deviations: a half cosine where the rate falls by 0.9 every 10 epochs; the loader makes the square.
        source="NPR, released code",
        optimiser="adam",
        lr=2e-4,
        # 0.9^4 of the first
        min_lr=1.3e-4,
        batch=32,
        epochs=50,
        # ASSUMPTION(paper): four classes of 36,000 images
        samples_per_epoch=144000,
        augment=("resize", "flip_horizontal"),
    ),
    "small": _detectors.SMALL_RECIPE,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Source: NPR, released code."""

    sizes: Sizes = field(default_factory=lambda: Sizes(kernel=3, depths=(3, 4)))
    """ResNet-50 without its last two stages, with a 3x3 stem."""
    classes: int = 1
    """1: the logit of fake, as released; 3: real, fully synthetic, tampered."""
    train: View = field(default_factory=lambda: View(side=256, square=True, crop=224))
    test: View = field(default_factory=View)
    """As in its results on AIGCDetectBenchmark; for some sets the code makes squares of 256, to have batches."""
    input_size: int | None = 256
    """Images are resized to this in training, where the profile gives no crop (pixels)."""
    count_size: int = 224
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(
    Config(),
    sizes=Sizes(stem=8, kernel=3, width=4, expansion=4, depths=(1, 2)),
    train=View(crop=192),
    input_size=None,
    recipe=RECIPES["small"],
)
VARIANTS: dict[str, Config] = {"": Config(), "three": replace(Config(), classes=3)}


def relations(x: Tensor) -> Tensor:
    """(B,C,H,W) minus the top-left value of each 2x2 block, so that it is 0 there; an odd last row or column is left
    out. A side of 1 is doubled first. Source: NPR, Eq. 2 (nearest neighbour down and up)."""
    height, width = x.shape[2:]
    x = F.pad(x, (0, int(width == 1), 0, int(height == 1)), mode="replicate")
    x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
    first = x[:, :, ::2, ::2]
    return x - first.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


class NPR(detector.Detector):
    """`network` has the names of the released state dict; its last layer is `fc1`."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.classes, config.train, config.test)
        self.config = config
        self.network = detector.ResNet(config.sizes, config.classes, head="fc1")

    def logits(self, prepared: Tensor) -> Tensor:
        return self.network(relations(prepared) * 2 / 3)


def build(config: Config, assets: Mapping[str, Path]) -> NPR:
    """NPR for `config`. It starts at random and needs no assets."""
    return NPR(config)


def load_official(method: NPR, path: Path) -> None:
    """Load a released state dict (`NPR.pth`, `model_epoch_last_3090.pth`). Strict."""
    detector.load_official(method.network, path, "NPR")
