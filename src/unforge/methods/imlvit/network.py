"""The network, its loss and its prediction. Names of modules are those of official state dicts.

Source: IML-ViT (Ma et al. 2023) and its released code (MIT), from which facts were taken and no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.methods.imlvit.config import Config
from unforge.methods.imlvit.encoder import EPSILON, Encoder
from unforge.nn import official
from unforge.nn.extractors import TruncatedStem
from unforge.nn.uniformer import pad_to
from unforge.types import Batch, Losses, Prediction

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel of (B,C,H,W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, EPSILON).permute(0, 3, 1, 2)


class NormedConv(nn.Conv2d):
    """Convolution without bias, and its norm."""

    def __init__(self, channels: int, width: int, size: int) -> None:
        super().__init__(channels, width, size, padding=size // 2, bias=False)
        self.norm = ChannelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Pyramid(nn.Module):
    """One map (B,C,h,w) to five: 4, 2, 1, 1/2 and 1/4 times its size, no activation at their ends."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()

        def level(*layers: nn.Module, channels: int) -> nn.Sequential:
            return nn.Sequential(*layers, NormedConv(channels, width, 1), NormedConv(width, width, 3))

        def twice(channels: int) -> nn.Module:
            return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)

        self.simfp_2 = level(twice(dim), ChannelNorm(dim // 2), nn.GELU(), twice(dim // 2), channels=dim // 4)
        self.simfp_3 = level(twice(dim), channels=dim // 2)
        self.simfp_4 = level(channels=dim)
        self.simfp_5 = level(nn.MaxPool2d(2, ceil_mode=True), channels=dim)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.simfp_2(x), self.simfp_3(x), self.simfp_4(x), self.simfp_5(x)]
        return [*maps, maps[-1][:, :, ::2, ::2]]


class Head(nn.Module):
    """Five maps to logits (B,1,h,w) at the size of the first. Without any non-linearity, as the released code."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear_fuse = nn.Conv2d(5 * width, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.linear_predict = nn.Conv2d(width, 1, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = tuple(maps[0].shape[2:])
        sized = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in maps[1:]]
        return self.linear_predict(self.dropout(self.norm(self.linear_fuse(torch.cat([maps[0], *sized], dim=1)))))


class IMLViT(nn.Module):
    """IML-ViT."""

    EXTRAS: tuple[str, ...] = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.source not in ("rgb", "stem"):
            raise ValueError(f"source {config.source!r}: 'rgb' and 'stem' are accepted")
        self.config = config
        self.stem = TruncatedStem() if config.source == "stem" else None
        self.encoder_net = Encoder(
            maps=3 if self.stem is None else TruncatedStem.maps,
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            strides=config.strides,
            positions=config.positions,
            table=config.table,
            window=config.window,
            whole=config.whole,
            drop_path=config.drop_path,
        )
        self.featurePyramid_net = Pyramid(config.dim, config.pyramid)
        self.predict_head = Head(config.pyramid, config.dropout)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(1, 3, 1, 1), persistent=False)

    def squared(self, x: Tensor) -> Tensor:
        """(B,C,H,W) cut or padded with zeros, at the bottom and the right, to the configured size."""
        size = self.config.input_size
        if size is None:
            return x
        x = x[:, :, :size, :size]
        return F.pad(x, (0, size - x.shape[3], 0, size - x.shape[2]))

    def seen(self, image: Tensor) -> Tensor:
        """What the encoder is given. The image is padded before it is normalised, so that the padding is not 0."""
        if self.stem is not None:
            return pad_to(self.squared(self.stem(image)), self.encoder_net.stride)
        return pad_to((self.squared(image) - self.mean) / self.std, self.encoder_net.stride)

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] to logits (B,1,h,w) at the configured size."""
        seen = self.seen(image)
        logits = self.predict_head(self.featurePyramid_net(self.encoder_net(seen)))
        logits = F.interpolate(logits, size=tuple(seen.shape[2:]), mode="bilinear", align_corners=False)
        height, width = (image.shape[2:]) if self.config.input_size is None else seen.shape[2:]
        return logits[:, :, :height, :width]

    def loss(self, batch: Batch) -> Losses:
        """Mean BCE, plus `edge` times the mean over all pixels of the BCE within the edge band. Terms: `bce`, `edge`.

        ValueError without masks.
        """
        if batch.mask is None:
            raise ValueError("IML-ViT learns from masks: the batch has none")
        logits = self(batch.image).float()
        mask = self.squared(batch.mask.to(logits))
        each = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        terms = {"bce": each.mean(), "edge": (each * edge_band(mask, self.config.band)).mean()}
        return Losses(total=terms["bce"] + self.config.edge * terms["edge"], terms=terms)

    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """Probability of manipulation (B,1,H,W) at the image's own size; the score is its maximum.

        `image` (B,3,H,W) in [0,1], any size. Beyond `input_size` nothing is seen: the probability is 0 there.
        ASSUMPTION(paper): the network defines no score; benchmarks take the map's maximum.
        """
        height, width = image.shape[2:]
        mask = self(image).float().sigmoid()[:, :, :height, :width]
        mask = F.pad(mask, (0, width - mask.shape[3], 0, height - mask.shape[2]))
        return Prediction(mask=mask, score=mask.flatten(1).amax(1))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Two groups: matrices, filters and tables with `weight_decay`; biases and norms without."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]


def edge_band(mask: Tensor, width: int) -> Tensor:
    """(B,1,H,W), 0 or 1: pixels from which a cross `width` pixels wide reaches manipulated and authentic ones.

    Nothing lies beyond the image. ValueError for an even width.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"band {width!r}: an odd number of pixels is accepted")
    return grown(mask, width) * grown(1 - mask, width)


def grown(mask: Tensor, width: int) -> Tensor:
    """`mask` (B,1,H,W) dilated by a cross of `width` pixels."""
    half = width // 2
    across = F.max_pool2d(mask, (1, width), stride=1, padding=(0, half))
    return torch.maximum(across, F.max_pool2d(mask, (width, 1), stride=1, padding=(half, 0)))


def build(config: Config, assets: Mapping[str, Path]) -> IMLViT:
    """IML-ViT for `config`. Asset `backbone`: a state dict of MAE's ViT-B, or of this method."""
    method = IMLViT(config)
    if "backbone" in assets:
        load_official(method, official.read(assets["backbone"]))
    return method


def load_official(method: IMLViT, state_dict: Mapping[str, object]) -> None:
    """Load the official state dict (212 tensors), or MAE's of a ViT into the encoder, whose relative positions stay.

    Strict: ValueError for any other, naming what is missing, left over or of another shape.
    """
    given = official.tensors(state_dict)
    if any(name.startswith("encoder_net.") for name in given):
        official.fill(method, given, "IML-ViT")
        return
    relative = {name: value for name, value in method.encoder_net.state_dict().items() if ".rel_pos_" in name}
    without = ("cls_token", "norm.", "fc_norm.", "head.", "mask_token", "decoder_")
    official.fill(method.encoder_net, relative | given, "MAE's ViT", without=without)
