"""Constant predictions: what a score means without any model. Nothing is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.types import Batch, Losses, Prediction, Recipe

NOTHING = Recipe(
    source="nothing is trained",
    optimiser="adamw",
    lr=0.0,
    min_lr=0.0,
    batch=1,
    epochs=0,
    samples_per_epoch=0,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which constant."""

    shape: Literal["all", "centre"] = "all"
    """`all`: every pixel is manipulated, for certain. `centre`: the centre is, falling off towards the border."""
    radius: float = 0.5
    """`centre`: where the probability is 0.5, in half sizes of the image (0.5: an ellipse over 20 % of it)."""
    count_size: int = 512
    recipe: Recipe = NOTHING


SMALL = Config()
VARIANTS: dict[str, Config] = {
    "": Config(),
    "all": Config(),
    "centre": replace(Config(), shape="centre"),
}


class Constant(nn.Module):
    """The same mask for every image of one size. Has no parameters."""

    EXTRAS: tuple[str, ...] = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) to probabilities (B,1,H,W)."""
        b, _, h, w = image.shape
        if self.config.shape == "all":
            return torch.ones(b, 1, h, w, device=image.device)
        y = (torch.arange(h, device=image.device) + 0.5) / h * 2 - 1
        x = (torch.arange(w, device=image.device) + 0.5) / w * 2 - 1
        squared = (y[:, None].square() + x[None, :].square()) / self.config.radius**2
        return torch.exp2(-squared).expand(b, 1, h, w)

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of the constant, clamped to 1e-6, without a gradient. ValueError without masks."""
        if batch.mask is None:
            raise ValueError("the constant's loss needs masks: the batch has none")
        value = F.binary_cross_entropy(self(batch.image).clamp(1e-6, 1 - 1e-6), batch.mask.float())
        return Losses(total=value, terms={"bce": value})

    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """`image` (B,3,H,W); `score` is the mask's maximum."""
        mask = self(image)
        return Prediction(mask=mask, score=mask.amax(dim=(1, 2, 3)))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return []


def build(config: Config, assets: Mapping[str, Path]) -> Constant:
    return Constant(config)
