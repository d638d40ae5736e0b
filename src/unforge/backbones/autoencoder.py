"""A small convolutional autoencoder without a codebook: re-renders an image, as a generator's decoder leaves it.

It makes the `regenerated` regions of stand-ins. No paper defines it; it stands in for the autoencoder of a
latent diffusion model, whose traces inpainted regions carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.types import Batch, Losses, Recipe

FACTOR = 4
"""Side of an image over the side of its latent."""

RECIPE = Recipe(
    source="unforge: probed for L1 of about .045 within 15 s on one thread",
    optimiser="adamw",
    lr=4e-3,
    min_lr=1e-4,
    batch=16,
    epochs=20,
    samples_per_epoch=320,
    warmup_epochs=1.0,
    clip=1.0,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 24
    """Channels at half the side; twice as many below."""
    latent: int = 4
    """Channels of the latent, at 1/4 of the side."""
    recipe: Recipe = field(default_factory=lambda: RECIPE)


SMALL = Config()


class Autoencoder(nn.Module):
    """Encoder: two strided convolutions. Decoder: enlargement (nearest, last pixel shuffle) and convolutions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.encoder = nn.Sequential(
            _block(3, width, stride=2),
            _block(width, 2 * width, stride=2),
            nn.Conv2d(2 * width, config.latent, 1),
        )
        self.decoder = nn.Sequential(
            _block(config.latent, 2 * width),
            nn.Upsample(scale_factor=2),
            _block(2 * width, width),
            nn.Conv2d(width, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1], sides multiples of 4, to its reconstruction, not clipped."""
        return self.decoder(self.encoder(image - 0.5)) + 0.5

    def loss(self, batch: Batch) -> Losses:
        """Mean absolute error of the reconstruction, [0,1] scale."""
        error = (self(batch.image) - batch.image).abs().mean()
        return Losses(total=error, terms={"l1": error})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases and norms."""
        matrices = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

    @torch.no_grad()
    def render(self, image: np.ndarray) -> np.ndarray:
        """Reconstruction of an (H, W, 3) uint8 RGB image of any size, on the model's device."""
        height, width = image.shape[:2]
        device = next(self.parameters()).device
        values = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float() / 255
        padded = F.pad(values, (0, -width % FACTOR, 0, -height % FACTOR), mode="replicate")
        result = self(padded)[0, :, :height, :width].clamp(0, 1).mul(255).round()
        return result.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


def _block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1),
        nn.GroupNorm(4, channels_out),
        nn.SiLU(),
    )


def build(config: Config, assets: Mapping[str, Path]) -> Autoencoder:
    """An untrained autoencoder; it needs no assets."""
    return Autoencoder(config)
