"""UnivFD: one linear layer on what a frozen CLIP sees.

At small scale the frozen tower is the small CLIP, which reads tokens of the forensic backbone; the head alone is
trained, as in the original. Deviation: unlike CLIP, that tower has been taught about forgeries, with masks, on other
photographs; a CLIP that knows images but no forgeries does not fit the scale.

Source: Ojha et al., CVPR 2023 (MIT), and facts of its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from unforge.backbones import clip, seen
from unforge.nn import detector, official
from unforge.nn.detector import View
from unforge.types import Recipe

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        # Deviations: as CNNSpot's, for blur and JPEG of probability 0.5.
        source="UniversalFakeDetect, released code",
        optimiser="adamw",
        lr=1e-4,
        min_lr=1e-6,
        batch=256,
        # ASSUMPTION(paper): early stopping ends it; 20 passes
        epochs=20,
        samples_per_epoch=720000,
        augment=("resize", "blur", "jpeg", "flip_horizontal"),
    ),
    "small": Recipe(
        source="unforge: what fits into 15 s on one thread",
        optimiser="adamw",
        lr=5e-3,
        min_lr=5e-5,
        batch=8,
        epochs=1,
        samples_per_epoch=1600,
        warmup_epochs=0.1,
        clip=1.0,
        # few images again and again: what the tower sees of them is remembered
        augment=("flip_horizontal",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Source: released code; CLIP ViT-L/14 with its projection."""

    clip: clip.Config = field(default_factory=lambda: clip.Config(projection=768))
    """Sizes where no backbone is given."""
    classes: int = 1
    """1: the logit of fake, as released; 3: real, fully synthetic, tampered."""
    train: View = field(default_factory=lambda: View(side=256, crop=224))
    test: View = field(default_factory=lambda: View(crop=224))
    input_size: int | None = 256
    """Images are resized to this in training, where the profile gives no crop (pixels)."""
    count_size: int = 224
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(Config(), clip=clip.SMALL, train=View(), test=View(), input_size=None, recipe=RECIPES["small"])
VARIANTS: dict[str, Config] = {"": Config(), "three": replace(Config(), classes=3)}
PARTS = {"vision_tower": "tower", "head": "fc"}
"""Parts that can be counted by themselves, and where they are."""


class UnivFD(detector.Detector):
    """`fc` on the image embedding of the frozen `tower`."""

    def __init__(self, config: Config, tower: clip.Clip) -> None:
        super().__init__(config.classes, config.train, config.test)
        self.config = config
        self.tower = tower.requires_grad_(False).eval()
        self.tower.classes = None
        self.fc = nn.Linear(tower.width if tower.projection is None else tower.projection.out_features, config.classes)
        nn.init.normal_(self.fc.weight, 0.0, 0.02)

    def train(self, mode: bool = True) -> UnivFD:
        """The frozen tower stays in eval mode."""
        super().train(mode)
        self.tower.eval()
        return self

    def prepared(self, image: Tensor) -> Tensor:
        """What the tower sees of the view of `image` (B,3,H,W) in [0,1]: pixels with CLIP's statistics, or tokens."""
        return self.tower.prepared(self.seen(image))

    @torch.no_grad()
    def features(self, prepared: Tensor) -> Tensor:
        """(B,C): CLIP's image embedding, of any norm."""
        return self.tower.embedding(prepared)

    def logits(self, prepared: Tensor) -> Tensor:
        return self.fc(self.features(prepared))

    def save_files(self, run_dir: Path) -> None:
        """The sizes of the tower."""
        self.tower.save_files(run_dir)


def build(config: Config, assets: Mapping[str, Path]) -> UnivFD:
    """UnivFD for `config`. Assets: `backbone`, a trained CLIP or an official folder of one; or `run`, a saved run.
    Without: a random tower.

    ValueError for a backbone of another kind, and for one without the projection that the configuration asks for.
    """
    if "run" in assets:
        return UnivFD(config, clip.build(config.clip, {"run": assets["run"]}))
    if "backbone" not in assets:
        return UnivFD(config, clip.build(config.clip, {}))
    tower = seen.opened(assets["backbone"], "clip", config.clip)
    if not isinstance(tower, clip.Clip):
        raise ValueError(f"{assets['backbone']} holds a {type(tower).__name__}: UnivFD builds on CLIP")
    if config.clip.projection and tower.projection is None:
        raise ValueError(
            f"{assets['backbone']} has no projection: a whole CLIP is accepted, as openai/clip-vit-large-patch14 is"
        )
    return UnivFD(config, tower)


def load_official(method: UnivFD, path: Path) -> None:
    """Load the released head (`fc_weights.pth`: `weight`, `bias`), or that of a checkpoint of the training script
    (`fc.weight`, `fc.bias`, beside a CLIP that was not trained). Strict."""
    given = detector.released(path)
    if "fc.weight" in given:
        given = {name.removeprefix("fc."): value for name, value in given.items() if name.startswith("fc.")}
    official.fill(method.fc, given, "UnivFD")
