"""Residual blocks and the dilated ResNet, with the key names of torchvision's state dicts."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride and the dilation), 1x1 to `width * expansion` channels, added to the input.

    The input goes through a 1x1 convolution (`downsample`) where its shape differs. Source: He et al. 2016, with
    the stride on the 3x3 convolution as in torchvision.
    """

    def __init__(
        self, channels: int, width: int, expansion: int = 4, stride: int = 1, rate: int = 1, momentum: float = 0.1
    ) -> None:
        super().__init__()
        out = width * expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, momentum=momentum)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=rate, dilation=rate, bias=False)
        self.bn2 = nn.BatchNorm2d(width, momentum=momentum)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out, momentum=momentum)
        self.downsample = _shortcut(channels, out, stride, momentum)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to the input. Source: He et al. 2016."""

    def __init__(self, channels: int, width: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, momentum=momentum)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, momentum=momentum)
        self.downsample = _shortcut(channels, width, 1, momentum)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Four stages of bottlenecks; the last dilates instead of halving. (B,`inputs`,H,W) to the stages' maps.

    `strides`: of the stem's convolution, of its max pooling (1: none) and of stages 2, 3 and 4. `rates`: dilations
    of the last stage's blocks. `classes` is the width of the unused classifier `fc`, which official state dicts
    hold (0: none); it does not require gradients.
    """

    def __init__(
        self,
        inputs: int = 3,
        stem: int = 64,
        width: int = 64,
        expansion: int = 4,
        depths: Sequence[int] = (3, 4, 6, 3),
        strides: Sequence[int] = (2, 2, 2, 2, 1),
        rates: Sequence[int] = (1, 2, 4),
        classes: int = 1000,
    ) -> None:
        super().__init__()
        if len(rates) != depths[3]:
            raise ValueError(f"rates {tuple(rates)} for a last stage of {depths[3]} blocks: one for each is accepted")
        self.pool = strides[1]
        self.conv1 = nn.Conv2d(inputs, stem, 7, strides[0], padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        channels = stem
        self.channels: list[int] = []
        for stage, depth in enumerate(depths):
            blocks = []
            for place in range(depth):
                stride = strides[stage + 1] if stage and place == 0 else 1
                rate = rates[place] if stage == 3 else 1
                blocks.append(Bottleneck(channels, width * 2**stage, expansion, stride, rate))
                channels = width * 2**stage * expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.channels.append(channels)
        if classes:
            self.fc = nn.Linear(channels, classes).requires_grad_(False)
        kaiming(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        if self.pool > 1:
            x = F.max_pool2d(x, 3, self.pool, padding=1)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def kaiming(module: nn.Module) -> None:
    """Start the convolutions as He et al. 2015 (normal, by fan-out)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def _shortcut(channels: int, out: int, stride: int, momentum: float) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out, momentum=momentum))
