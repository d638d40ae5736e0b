"""A small network that sees traces of manipulation: at small scale everything else starts from its frozen features.

No paper defines it. Vision transformers of a few layers learn nothing from pixels in minutes on a CPU; a truncated
high-pass front end and some convolutions do. It is trained with masks on photographs of split `pretrain`, which no
method is trained or tested on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.nn.attention import init_linear
from unforge.nn.extractors import LocalPath, TruncatedStem
from unforge.nn.heads import resized
from unforge.nn.uniformer import ConvBlock, PatchEmbed, SparseBlock, pad_to
from unforge.types import Batch, Losses, Recipe

TRAINED_ON = "pretraining"
STRIDE = 8
"""Pixels per cell of `deep` and `logits`."""

RECIPE = Recipe(
    source="unforge: what learns within 75 s on one thread",
    optimiser="adamw",
    lr=3e-3,
    min_lr=3e-5,
    batch=8,
    epochs=20,
    samples_per_epoch=480,
    warmup_epochs=1.0,
    weight_decay=0.01,
    clip=1.0,
    ema=0.99,
    augment=("dihedral",),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 32
    """Channels everywhere."""
    depth: int = 1
    """Convolution blocks at 1/4 of the side."""
    rates: tuple[int, ...] = (4, 2, 2)
    """Sparsity of each attention block at 1/8 of the side."""
    heads: int = 4
    mlp_ratio: float = 2.0
    layer_scale: float = 0.3
    dice: float = 0.5
    """Weight of the Dice loss beside binary cross-entropy."""
    recipe: Recipe = field(default_factory=lambda: RECIPE)


SMALL = Config()


class Forensic(nn.Module):
    """Truncated high-pass stem, convolutions at 1/4, sparse attention at 1/8 and 1/16, fused at 1/8.

    `width`: channels of `tokens`, the deep features and the probability of manipulation.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = config.width + 1
        self.frozen = False
        width = config.width
        self.stem = TruncatedStem()
        self.path = LocalPath(self.stem.maps, width, (2, 2), overlap=True)
        self.shallow = nn.Sequential(*(ConvBlock(width, config.mlp_ratio, 0.0) for _ in range(config.depth)))
        self.down = PatchEmbed(width, width, 2)
        blocks = (config.heads, config.mlp_ratio, 0.0, config.layer_scale)
        self.deep = nn.Sequential(*(SparseBlock(width, *blocks, rate) for rate in config.rates))
        self.further = nn.Sequential(PatchEmbed(width, width, 2), SparseBlock(width, *blocks, 2))
        self.fuse = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 1)
        for part in (self.deep, self.further, self.fuse, self.head):
            init_linear(part)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Maps of `image` (B,3,H,W) in [0,1], of any size; h, w are H, W over 4 or 8, rounded up.

        `shallow` (B,C,H/4,W/4), `deep` (B,C,H/8,W/8) and `logits` (B,1,H/8,W/8) of manipulation. Sizes that are no
        multiple of 8 are continued by their border.
        """
        image = pad_to(image, STRIDE)
        shallow = self.shallow(self.path(self.stem(image)))
        fine = self.deep(self.down(shallow))
        coarse = resized(self.further(fine), fine.shape[1:3])
        deep = self.norm(self.fuse(torch.cat([fine, coarse], dim=-1)))
        maps = {"shallow": shallow, "deep": deep, "logits": self.head(deep)}
        return {name: x.permute(0, 3, 1, 2) for name, x in maps.items()}

    @torch.no_grad()
    def tokens(self, image: Tensor, grid: int) -> Tensor:
        """(B,grid*grid,`width`), row by row: deep features and the probability, averaged over each cell of the image.

        `image` (B,3,H,W) in [0,1]. Without gradients and with the statistics of training (eval mode), whatever mode
        the network is in.
        """
        training = self.training
        self.eval()
        maps = self(image)
        self.train(training)
        tokens = torch.cat([maps["deep"], maps["logits"].sigmoid()], dim=1)
        return F.adaptive_avg_pool2d(tokens, (grid, grid)).flatten(2).transpose(1, 2)

    def imitation(self, mask: Tensor, grid: int) -> Tensor:
        """(B,grid*grid,`width`): what `tokens` would give for an image of which only an uncertain map of `mask`
        (B,1,H,W), 0 or 1, is known: the map, blurred, sharpened and noised at random, beside features of 0.

        Ours: with it, what reads the tokens can learn from masks alone. Draws from torch's generator.
        """
        cells = F.adaptive_avg_pool2d(mask.float(), (grid, grid))
        blurred = F.avg_pool2d(F.pad(cells, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        mix, noise = torch.rand(2, len(mask), 1, 1, 1).to(cells)
        cells = torch.lerp(cells, blurred, mix) + 0.3 * noise * torch.randn(cells.shape).to(cells)
        features = cells.new_zeros(len(mask), self.width - 1, grid, grid)
        return torch.cat([features, cells.clamp(0, 1)], dim=1).flatten(2).transpose(1, 2)

    def freeze(self) -> Forensic:
        """From now on nothing here requires a gradient, and `train()` leaves it in eval mode."""
        self.frozen = True
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Forensic:
        """Frozen, it stays in eval mode."""
        return super().train(mode and not self.frozen)

    def loss(self, batch: Batch) -> Losses:
        """Binary cross-entropy and Dice (over the batch) at 1/8 of the side. Terms `bce`, `dice`. ValueError without
        masks. The mask's share of each cell is the target."""
        if batch.mask is None:
            raise ValueError("the forensic backbone learns from masks: the batch has none")
        logits = self(batch.image)["logits"].float()
        target = F.avg_pool2d(pad_to(batch.mask.to(logits), STRIDE), STRIDE)
        terms = {"bce": F.binary_cross_entropy_with_logits(logits, target)}
        probability = logits.sigmoid()
        terms["dice"] = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
        return Losses(total=terms["bce"] + self.config.dice * terms["dice"], terms=terms)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and layer scales."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]


class Memory:
    """Results of a frozen network by the content of the image, for loops that see the same images again.

    One image at a time goes through the network, so that a result does not depend on what else was in the batch.
    """

    def __init__(self, room: int) -> None:
        """`room`: bytes of results that are kept; what comes later is computed again each time."""
        self.room = room
        self.kept: dict[bytes, tuple[Tensor, ...]] = {}

    @torch.no_grad()
    def __call__(self, image: Tensor, function: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """`function` of each image (1,3,H,W) of (B,3,H,W), with values of n / 255, stacked."""
        found = []
        for one in image.split(1):
            content = one.mul(255).round().byte().cpu().numpy().tobytes() + str(tuple(one.shape)).encode()
            key = hashlib.blake2b(content, digest_size=16).digest()
            result = self.kept.get(key)
            if result is None:
                result = function(one)
                size = sum(x.numel() * x.element_size() for x in result)
                if size <= self.room:
                    self.room -= size
                    self.kept[key] = result
            found.append(result)
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def build(config: Config, assets: Mapping[str, Path]) -> Forensic:
    """An untrained network; it needs no assets."""
    return Forensic(config)
