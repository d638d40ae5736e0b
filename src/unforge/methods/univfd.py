"""UnivFD: one linear layer on what a frozen CLIP sees.

At small scale the frozen tower is that of the small LLaVA, which reads tokens of the forensic backbone, and its patch
features are pooled; the head alone is trained, as in the original. Deviation: unlike CLIP, that tower has been taught
about forgeries, with masks, on other photographs; a CLIP that knows images but no forgeries does not fit the scale.

Source: Ojha et al., CVPR 2023 (MIT), and facts of its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unforge import paths
from unforge.backbones import llava, seen
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
    """Source: released code; sizes of CLIP ViT-L/14."""

    tower: Literal["clip", "llava"] = "clip"
    """CLIP's image embedding (the class token, normalised and projected); or LLaVA's patch features, pooled."""
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp: int = 4096
    patch: int = 14
    image_size: int = 224
    """Side of what CLIP sees (pixels)."""
    projection: int = 768
    """Length of its embedding."""
    pool: Literal["mean", "max"] = "max"
    """How patch features are pooled, for the tower `llava`. Chosen on 43 validation images of the stand-in of SID-Set,
    mean over three seeds: of three classes 0.97 are right with the maximum, 0.92 with the mean and 0.90 with the class
    token, which LLaVA leaves out."""
    classes: int = 1
    """1: the logit of fake, as released; 3: real, fully synthetic, tampered."""
    train: View = field(default_factory=lambda: View(side=256, crop=224))
    test: View = field(default_factory=lambda: View(crop=224))
    input_size: int | None = 256
    """Images are resized to this in training, where the profile gives no crop (pixels)."""
    count_size: int = 224
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(
    Config(),
    tower="llava",
    train=View(),
    test=View(),
    input_size=None,
    recipe=RECIPES["small"],
)
VARIANTS: dict[str, Config] = {"": Config(), "three": replace(Config(), classes=3)}
PARTS = {"vision_tower": "tower", "head": "fc"}
"""Parts that can be counted by themselves, and where they are."""


class UnivFD(detector.Detector):
    """`fc` on features of the frozen `tower`: transformers' `CLIPVisionModelWithProjection`, or LLaVA."""

    def __init__(self, config: Config, tower: Any, width: int) -> None:
        super().__init__(config.classes, config.train, config.test, llava.MEAN, llava.STD)
        self.config = config
        self.tower = tower.requires_grad_(False).eval()
        self.fc = nn.Linear(width, config.classes)
        nn.init.normal_(self.fc.weight, 0.0, 0.02)

    def train(self, mode: bool = True) -> UnivFD:
        super().train(mode)
        self.tower.eval()
        return self

    def prepared(self, image: Tensor) -> Tensor:
        """What the tower sees of `image` (B,3,H,W) in [0,1]: its view with CLIP's statistics; or LLaVA's tokens."""
        if self.config.tower == "clip":
            return super().prepared(image)
        prepared: Tensor = self.tower.prepared(self.seen(image))
        return prepared

    @torch.no_grad()
    def features(self, prepared: Tensor) -> Tensor:
        """(B,C), of any norm: CLIP's image embedding, or the pooled patches."""
        if self.config.tower == "clip":
            embedding: Tensor = self.tower(pixel_values=prepared).image_embeds
            return embedding
        patches = self.tower.features(prepared)
        pooled: Tensor = patches.mean(1) if self.config.pool == "mean" else patches.amax(1)
        return pooled

    def logits(self, prepared: Tensor) -> Tensor:
        return self.fc(self.features(prepared))

    def save_files(self, run_dir: Path) -> None:
        """What the small tower is made from again."""
        if self.config.tower == "llava":
            self.tower.save_files(run_dir)


def build(config: Config, assets: Mapping[str, Path]) -> UnivFD:
    """UnivFD for `config`. Asset `backbone`: a folder with CLIP as transformers has it, or, for the tower `llava`, a
    trained LLaVA; or `run`, a saved run. Without: a random tower.

    ValueError for an unknown tower or pool, and for a backbone of another kind.
    """
    if config.tower not in ("clip", "llava") or config.pool not in ("mean", "max"):
        raise ValueError(
            f"tower {config.tower!r}, pool {config.pool!r}: 'clip' and 'llava', 'mean' and 'max' are accepted"
        )
    if config.tower == "clip":
        return UnivFD(config, _clip(config, assets), config.projection)
    tower = _llava(assets)
    return UnivFD(config, tower, tower.config.vision_width)


def load_official(method: UnivFD, path: Path) -> None:
    """Load the released head (`fc_weights.pth`: `weight`, `bias`), or that of a checkpoint of the training script
    (`fc.weight`, `fc.bias`, beside a CLIP that was not trained). Strict."""
    given = detector.released(path)
    if "fc.weight" in given:
        given = {name.removeprefix("fc."): value for name, value in given.items() if name.startswith("fc.")}
    official.fill(method.fc, given, "UnivFD")


def _clip(config: Config, assets: Mapping[str, Path]) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    if "backbone" in assets:
        folder = assets["backbone"]
        if paths.read_json(folder / "config.json").get("model_type") not in ("clip", "clip_vision_model"):
            raise ValueError(f"{folder} has no CLIP projection: one of openai/clip-vit-large-patch14 is accepted")
        tower = CLIPVisionModelWithProjection.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
        if tower.config.projection_dim != config.projection:
            raise ValueError(f"{folder} projects to {tower.config.projection_dim}: {config.projection} is accepted")
        return tower
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=config.width,
            intermediate_size=config.mlp,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            patch_size=config.patch,
            image_size=config.image_size,
            projection_dim=config.projection,
        )
    )


def _llava(assets: Mapping[str, Path]) -> llava.Llava:
    if "backbone" in assets:
        tower = seen.opened(assets["backbone"], "llava", llava.SMALL)
        if not isinstance(tower, llava.Llava):
            raise ValueError(f"{assets['backbone']} is no LLaVA")
        return tower
    return llava.build(llava.SMALL, assets)
