"""HRNet: branches of several resolutions side by side, with the key names of the official state dicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from unforge.nn.resnet import BasicBlock, Bottleneck, kaiming


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B,C,h,w) bilinearly resized to `size` (height, width), corners aligned."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class Exchange(nn.Module):
    """One module of a stage: basic blocks in each branch, then each branch takes the sum of all, at its own size.

    Finer branches come down by 3x3 convolutions of stride 2, coarser ones come up by a 1x1 convolution and
    bilinear resizing. Source: Wang et al. 2020, HRNet.
    """

    def __init__(self, widths: Sequence[int], depth: int, momentum: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width, width, momentum) for _ in range(depth))) for width in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_way(widths, source, target, momentum) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for target, ways in zip(maps, self.fuse_layers, strict=True):
            # not from 0: `sum` would add one more operation
            total: Tensor | None = None
            for x, way in zip(maps, ways, strict=True):  # type: ignore[call-overload]
                part = resized(way(x), target.shape[2:])
                total = part if total is None else total + part
            fused.append(F.relu(total))
        return fused


class HRNet(nn.Module):
    """HRNet of three stages of one module each: (B,`inputs`,H,W) to one map a branch, finest first.

    Each branch has half the resolution of the one before. `strides`: of the two convolutions of the stem (official
    for classification: 2, 2). Source: HRNet-W18-small-v2; PSCC-Net for the strides.
    """

    def __init__(
        self,
        inputs: int = 3,
        stem: int = 64,
        strides: Sequence[int] = (1, 1),
        blocks: int = 2,
        expansion: int = 4,
        widths: Sequence[int] = (18, 36, 72, 144),
        depth: int = 2,
        momentum: float = 0.01,
    ) -> None:
        super().__init__()
        self.channels = list(widths)
        self.conv1 = nn.Conv2d(inputs, stem, 3, strides[0], padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem, momentum=momentum)
        self.conv2 = nn.Conv2d(stem, stem, 3, strides[1], padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem, momentum=momentum)
        self.layer1 = nn.Sequential(
            *(
                Bottleneck(stem * expansion if place else stem, stem, expansion, momentum=momentum)
                for place in range(blocks)
            )
        )
        before: tuple[int, ...] = (stem * expansion,)
        for stage in range(2, len(widths) + 1):
            self.add_module(f"transition{stage - 1}", _transition(before, widths[:stage], momentum))
            self.add_module(f"stage{stage}", nn.Sequential(Exchange(widths[:stage], depth, momentum)))
            before = tuple(widths[:stage])
        kaiming(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        maps = [self.layer1(x)]
        for stage in range(2, len(self.channels) + 1):
            transition, exchange = self.get_submodule(f"transition{stage - 1}"), self.get_submodule(f"stage{stage}")
            ways: list[Any] = list(transition.children())
            maps = exchange([way(maps[min(i, len(maps) - 1)]) for i, way in enumerate(ways)])
        return maps


def down(
    channels: int, out: int, momentum: float, *, stride: int = 2, bias: bool = False, act: bool = True
) -> nn.Sequential:
    """3x3 convolution, batch norm and, unless `act` is False, ReLU."""
    layers = [nn.Conv2d(channels, out, 3, stride, 1, bias=bias), nn.BatchNorm2d(out, momentum=momentum)]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


def _way(widths: Sequence[int], source: int, target: int, momentum: float) -> nn.Module:
    """From branch `source` to the width (and, downwards, the size) of branch `target`."""
    if source == target:
        return nn.Identity()
    if source > target:
        conv = nn.Conv2d(widths[source], widths[target], 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(widths[target], momentum=momentum))
    steps = [down(widths[source], widths[source], momentum) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, down(widths[source], widths[target], momentum, act=False))


def _transition(before: Sequence[int], after: Sequence[int], momentum: float) -> nn.ModuleList:
    """To the branches of the next stage; a new one comes from the last by a convolution of stride 2."""
    ways: list[nn.Module] = []
    for i, width in enumerate(after):
        if i >= len(before):
            ways.append(nn.Sequential(down(before[-1], width, momentum)))
        elif before[i] == width:
            ways.append(nn.Identity())
        else:
            ways.append(down(before[i], width, momentum, stride=1))
    return nn.ModuleList(ways)
