"""The network, its losses and its prediction. Names inside each of the three parts are those of official files.

Source: PSCC-Net (Liu et al. 2022) and its released code (MIT), from which facts were taken and no code.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.methods.psccnet.config import Config
from unforge.nn import official
from unforge.nn.extractors import TruncatedStem
from unforge.nn.hrnet import HRNet, down, resized
from unforge.nn.resnet import Bottleneck
from unforge.types import Batch, Losses, Prediction


class Correlation(nn.Module):
    """Spatio-channel correlation (SCCM) of a map (B,C,h,w), and the mask logits (B,1,h,w) read off it.

    The map is reshaped to (C r^2, h/r, w/r) by memory order, not by neighbourhoods: each channel falls into r^2
    horizontal bands. Attention over positions and over channels shares three 1x1 convolutions and is not scaled.
    Source: released code. Its channel part is taken back to (C,h,w) without the transposition that the spatial part
    gets, so positions and channels change places there; kept, as the released weights are trained with it.
    h and w must be multiples of r.
    """

    def __init__(self, channels: int, reduction: int, hidden: int) -> None:
        super().__init__()
        self.reduction = reduction
        inner = channels * reduction**2
        self.g, self.theta, self.phi = (nn.Conv2d(inner, inner, 1) for _ in range(3))
        self.W_s, self.W_c = (nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.gamma_s, self.gamma_c = (nn.Parameter(torch.ones(1)) for _ in range(2))
        self.getmask = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 1, 3, padding=1)
        )

    def correlated(self, x: Tensor) -> Tensor:
        """x plus both attentions, (B,C,h,w)."""
        batch, channels, height, width = x.shape
        r = self.reduction
        folded = x.reshape(batch, channels * r * r, height // r, width // r)
        value = self.g(folded).flatten(2).transpose(1, 2)
        theta, phi = self.theta(folded).flatten(2), self.phi(folded).flatten(2)
        spatial = torch.softmax(theta.transpose(1, 2) @ phi, dim=-1) @ value
        channel = value @ torch.softmax(theta @ phi.transpose(1, 2), dim=-1)
        spatial = spatial.transpose(1, 2).reshape(x.shape)
        return x + self.gamma_s * self.W_s(spatial) + self.gamma_c * self.W_c(channel.reshape(x.shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.getmask(self.correlated(x))


class Localisation(nn.Module):
    """Maps, finest first, to mask logits, finest first: each map is multiplied by the mask of the coarser one."""

    def __init__(self, channels: Sequence[int], reductions: Sequence[int], hidden: int) -> None:
        super().__init__()
        for i, (width, reduction) in enumerate(zip(channels, reductions, strict=True), start=1):
            self.add_module(f"getmask{i}", Correlation(width, reduction, hidden))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        for i, x in reversed(list(enumerate(maps, start=1))):
            if found:
                x = x * resized(found[-1].sigmoid(), x.shape[2:])
            found.append(self.get_submodule(f"getmask{i}")(x))
        return found[::-1]


class Detection(nn.Module):
    """Maps, finest first, to two logits (B,2): authentic, manipulated. HRNet's classification head."""

    def __init__(self, channels: Sequence[int], width: int, hidden: int, momentum: float) -> None:
        super().__init__()
        self.incre_modules = nn.ModuleList(
            nn.Sequential(Bottleneck(channel, channel, 2, momentum=momentum)) for channel in channels
        )
        self.downsamp_modules = nn.ModuleList(
            down(2 * fine, 2 * coarse, momentum, bias=True) for fine, coarse in itertools.pairwise(channels)
        )
        self.final_layer = nn.Sequential(
            nn.Conv2d(2 * channels[-1], width, 1), nn.BatchNorm2d(width, momentum=momentum), nn.ReLU()
        )
        self.classifier = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        total = self.incre_modules[0](maps[0])
        for x, widened, halved in zip(maps[1:], self.incre_modules[1:], self.downsamp_modules, strict=True):
            total = widened(x) + halved(total)
        return self.classifier(self.final_layer(total).mean((2, 3)))


class PSCCNet(nn.Module):
    """PSCC-Net. `trunk`, `localisation` and `detection` are the official HRNet, NLCDetection and DetectionHead."""

    EXTRAS = ("coarse2", "coarse3", "coarse4")
    """`predict(..., extras=True)`: the masks of the coarser maps, (B,1,h,w)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        if config.source not in ("rgb", "stem"):
            raise ValueError(f"source {config.source!r}: 'rgb' and 'stem' are accepted")
        self.stem = TruncatedStem() if config.source == "stem" else None
        self.trunk = HRNet(
            inputs=3 if self.stem is None else TruncatedStem.maps,
            stem=config.stem,
            strides=config.strides,
            blocks=config.blocks,
            expansion=config.expansion,
            widths=config.widths,
            depth=config.depth,
            momentum=config.momentum,
        )
        self.localisation = Localisation(config.widths, config.reductions, config.hidden)
        self.detection = Detection(config.widths, config.detection, config.classifier, config.momentum)

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """Maps (B,C,h,w) of the trunk, `s1` (finest) to `s4`. `image` (B,3,H,W) in [0,1] of any size, not resized.

        Source: released code: values are divided by 255 and nothing else.
        """
        maps = self.trunk(image if self.stem is None else self.stem(image))
        return {f"s{i}": x for i, x in enumerate(maps, start=1)}

    def sized(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps as the heads take them: the finest at `head_size`, each following one half as large."""
        size = self.config.head_size
        height, width = (size, size) if size else (8 * -(-side // 8) for side in maps[0].shape[2:])
        return [resized(x, (height >> i, width >> i)) for i, x in enumerate(maps)]

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B,3,H,W) in [0,1] to mask logits, finest first, at the heads' sizes, and class logits (B,2)."""
        maps = self.sized(list(self.features(image).values()))
        return self.localisation(maps), self.detection(maps)

    def loss(self, batch: Batch) -> Losses:
        """Sum of class-balanced BCE of the four masks, and weighted cross-entropy of the class.

        Terms: `mask1` (finest) to `mask4`, `image`. Classes weigh 1 / their share in training. An image counts as
        manipulated if its mask is not empty. Coarse masks are made by bicubic resizing and a threshold of 0.5.
        ValueError without masks.
        """
        if batch.mask is None:
            raise ValueError("PSCC-Net learns from masks: the batch has none")
        masks, logits = self(batch.image)
        terms: dict[str, Tensor] = {}
        for i, found in enumerate(masks, start=1):
            terms[f"mask{i}"] = balanced(found.float(), shrunk(batch.mask.float(), found.shape[2:]))
        total = self.config.mask * torch.stack(list(terms.values())).sum()
        forged = (batch.mask.flatten(1).amax(1) > 0.5).long()
        share = self.config.authentic
        weight = torch.tensor([1 / share, 1 / (1 - share)], device=logits.device)
        terms["image"] = F.cross_entropy(logits.float(), forged, weight=weight)
        return Losses(total=total + terms["image"], terms=terms)

    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """Probability of manipulation (B,1,H,W) at the image's own size; the score is the detection head's.

        `image` (B,3,H,W) in [0,1], any size.
        """
        masks, logits = self(image)
        found = [x.float().sigmoid() for x in masks]
        coarse = {f"coarse{i}": x for i, x in enumerate(found[1:], start=2)} if extras else {}
        return Prediction(
            mask=resized(found[0], image.shape[2:]), score=torch.softmax(logits.float(), dim=1)[:, 1], extras=coarse
        )

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Two groups: matrices and filters with `weight_decay`; biases, norms and gammas without."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]


def balanced(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy where either class weighs one half over its share of the batch; where the batch has
    no manipulated cell, every cell weighs 1. Source: released code."""
    share = mask.mean()
    weight = torch.where(mask > 0.5, 0.5 / share.clamp_min(1e-12), 0.5 / (1 - share).clamp_min(1e-12))
    weight = torch.where(share > 0, weight, torch.ones_like(weight))
    return F.binary_cross_entropy_with_logits(logits, mask, weight)


def shrunk(mask: Tensor, size: torch.Size) -> Tensor:
    """(B,1,H,W) to `size`, 0 or 1. Source: released code (PIL's bicubic filter, which averages, then > 0.5).

    PIL resizes across and then down, and keeps the values in range after each.
    """
    if tuple(mask.shape[2:]) == tuple(size):
        return mask
    for shape in ((mask.shape[2], size[1]), tuple(size)):
        mask = F.interpolate(mask, size=shape, mode="bicubic", antialias=True).clamp(0, 1)
    return (mask > 0.5).to(mask)


def build(config: Config, assets: Mapping[str, Path]) -> PSCCNet:
    """PSCC-Net for `config`. Asset `backbone`: the ImageNet state dict of HRNet-W18-small-v2 for the trunk."""
    method = PSCCNet(config)
    if "backbone" in assets:
        load_backbone(method, official.read(assets["backbone"]))
    return method


def load_official(
    method: PSCCNet, hrnet: Mapping[str, object], localisation: Mapping[str, object], detection: Mapping[str, object]
) -> None:
    """Load the three official state dicts (HRNet, NLCDetection, DetectionHead; keys with or without `module.`).

    Strict: ValueError for any other, naming what is missing, left over or of another shape. Of files saved during
    training the part under `model` is taken.
    """
    for part, given in (("trunk", hrnet), ("localisation", localisation), ("detection", detection)):
        official.fill(method.get_submodule(part), given, f"PSCC-Net's {part}")


def load_backbone(method: PSCCNet, state_dict: Mapping[str, object]) -> None:
    """Load HRNet's ImageNet state dict into the trunk; its classification head is left over. ValueError otherwise."""
    head = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")
    official.fill(method.trunk, state_dict, "HRNet-W18-small-v2", without=head)
