"""CNNSpot: a ResNet-50 that tells generated images, after blur and JPEG augmentation.

Source: CNNDetection (Wang et al., CVPR 2020) and facts of its code; none of the code itself (CC BY-NC-SA 4.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from unforge.methods import _detectors
from unforge.nn import detector
from unforge.nn.detector import Sizes, View
from unforge.types import Recipe

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        # Deviations: a half cosine for as many steps as given, where the rate falls tenfold with the accuracy on a
        # validation set and training stops at 1e-6; blur and JPEG as the other methods' (probability 0.2, kernels of 3
        # to 7, quality 70 to 100), where sigma is U(0,3), quality 30 to 100 and the probability 0.5 or 0.1; a square of
        # 256 comes from the loader.
        source="CNNDetection, released code (Blur+JPEG)",
        optimiser="adam",
        lr=1e-4,
        min_lr=1e-6,
        batch=64,
        # ASSUMPTION(paper): early stopping ends it; 20 passes
        epochs=20,
        samples_per_epoch=720000,
        augment=("resize", "blur", "jpeg", "flip_horizontal"),
    ),
    "small": _detectors.SMALL_RECIPE,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Source: CNNDetection, paper and code."""

    sizes: Sizes = field(default_factory=Sizes)
    classes: int = 1
    """1: the logit of fake, as released; 3: real, fully synthetic, tampered."""
    train: View = field(default_factory=lambda: View(side=256, crop=224))
    test: View = field(default_factory=lambda: View(crop=224))
    """Source: the paper, Sec. 4; its code's later advice is no crop either."""
    input_size: int | None = 256
    """Images are resized to this in training, where the profile gives no crop (pixels)."""
    count_size: int = 224
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(
    Config(),
    sizes=Sizes(stem=8, kernel=7, width=4, expansion=4, depths=(1, 1, 1, 1)),
    train=View(crop=192),
    input_size=None,
    recipe=RECIPES["small"],
)
VARIANTS: dict[str, Config] = {"": Config(), "three": replace(Config(), classes=3)}


class CNNSpot(detector.Detector):
    """`network` has the names of the released state dict."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.classes, config.train, config.test)
        self.config = config
        self.network = detector.ResNet(config.sizes, config.classes)
        nn.init.normal_(self.network.get_parameter("fc.weight"), 0.0, 0.02)

    def logits(self, prepared: Tensor) -> Tensor:
        return self.network(prepared)


def build(config: Config, assets: Mapping[str, Path]) -> CNNSpot:
    """CNNSpot for `config`. Asset `backbone`: torchvision's ResNet-50, from which the paper's starts; else random."""
    method = CNNSpot(config)
    if "backbone" in assets:
        detector.start(method.network, assets["backbone"], "ResNet-50")
    return method


def load_official(method: CNNSpot, path: Path) -> None:
    """Load a released checkpoint (`blur_jpg_prob0.5.pth`, `blur_jpg_prob0.1.pth`). Strict."""
    detector.load_official(method.network, path, "CNNSpot")
