"""Heads that turn a backbone's maps into one map of logits.

Every head is built with the channels of the maps it will get and takes them as a list of (B,h,w,C), the first
the finest; it returns logits (B,1,h,w) on the finest grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.nn.uniformer import pointwise


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B,h,w,C) bilinearly resized to `size` (height, width)."""
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    x = F.interpolate(x.permute(0, 3, 1, 2), size=tuple(size), mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)


class SingleHead(nn.Module):
    """1x1 convolution of the last map. ASSUMPTION(paper): "Single Scale" has no more than this."""

    def __init__(self, channels: Sequence[int], width: int, scale: float) -> None:
        super().__init__()
        self.conv_last = nn.Conv2d(channels[-1], 1, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return pointwise(self.conv_last, maps[-1]).permute(0, 3, 1, 2)


class LFF(nn.Module):
    """Learnable feature fusion: a weighted sum of all maps, LayerNorm, 1x1 convolution.

    Maps of another width than `width` go through a 1x1 convolution first, coarser ones are resized
    (bilinearly); each is multiplied by its own vector, which starts at `scale` (1e-6).

    Source: SparseViT, Eq. 3-7 and Fig. 3; the LayerNorm (eps 1e-6), without which sums scaled by 1e-6 would
    not train, is in the released code only.
    The weighted sum of the projected maps is one matrix product: the vectors scale the rows of the
    convolutions, and the maps lie side by side.
    """

    def __init__(self, channels: Sequence[int], width: int, scale: float) -> None:
        super().__init__()
        for i, channel in enumerate(channels, start=1):
            self.register_parameter(f"gamma{i}", nn.Parameter(torch.full((width,), scale)))
            if channel != width:
                self.add_module(f"conv_layer{i}", nn.Conv2d(channel, width, 1))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.conv_last = nn.Conv2d(width, 1, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[1:3]
        sides: list[Tensor] = []
        weights: list[Tensor] = []
        bias: Tensor | None = None
        total: Tensor | None = None
        for i, x in enumerate(maps, start=1):
            gamma = self.get_parameter(f"gamma{i}")
            conv = getattr(self, f"conv_layer{i}", None)
            if conv is not None and tuple(x.shape[1:3]) == tuple(size):
                sides.append(x)
                weights.append(conv.weight.flatten(1) * gamma[:, None])
                bias = conv.bias * gamma if bias is None else bias + conv.bias * gamma
                continue
            x = gamma * resized(x if conv is None else pointwise(conv, x), size)
            total = x if total is None else total + x
        if sides:
            fused = F.linear(torch.cat(sides, dim=-1), torch.cat(weights, dim=1), bias)
            total = fused if total is None else fused + total
        return pointwise(self.conv_last, self.norm(total)).permute(0, 3, 1, 2)


class MLPHead(nn.Module):
    """SegFormer's head: each map through a linear layer to `width`, resized, concatenated, fused by 1x1.

    Source: SegFormer; SparseViT, Table 3. ASSUMPTION(paper): the width of LFF (512), no dropout.
    """

    def __init__(self, channels: Sequence[int], width: int, scale: float) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(channel, width) for channel in channels)
        self.fuse = nn.Linear(width * len(channels), width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv_last = nn.Conv2d(width, 1, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[1:3]
        sides = [resized(linear(x), size) for linear, x in zip(self.linears, maps, strict=True)]
        fused = self.fuse(torch.cat(sides, dim=-1)).permute(0, 3, 1, 2)
        return self.conv_last(F.relu(self.norm(fused)))


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm and, unless `act` is False, ReLU, on (B,C,H,W)."""

    def __init__(self, channels: int, width: int, kernel: int = 1, dilation: int = 1, act: bool = True) -> None:
        conv = nn.Conv2d(channels, width, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False)
        super().__init__(conv, nn.BatchNorm2d(width), *([nn.ReLU()] if act else []))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling over all maps, concatenated on the coarsest grid.

    A 1x1 and three dilated 3x3 convolutions (6, 12, 18) and the mean over the image, each to `width // 2 + 1`
    channels; their concatenation, resized to the finest grid, goes through a 3x3 convolution to `width // 5`.
    Source: Chen et al. 2017. ASSUMPTION(paper): which maps, grids and widths; these are fitted to the counts
    that Table 7 prints (18.35 M, 5.46 G) for the width 512, which the usual 256 channels do not give.
    """

    def __init__(self, channels: Sequence[int], width: int, scale: float) -> None:
        super().__init__()
        total, inner, out = sum(channels), width // 2 + 1, width // 5
        self.branches = nn.ModuleList([ConvNorm(total, inner)])
        self.branches.extend(ConvNorm(total, inner, 3, rate) for rate in (6, 12, 18))
        # No batch norm here: with one position per image, a batch of one could not be normalised.
        self.pooled = nn.Conv2d(total, inner, 1)
        self.project = ConvNorm(5 * inner, out, 3)
        self.conv_last = nn.Conv2d(out, 1, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = torch.cat([resized(side, maps[-1].shape[1:3]) for side in maps], dim=-1).permute(0, 3, 1, 2)
        mean = F.relu(self.pooled(F.adaptive_avg_pool2d(x, 1)))
        sides = [branch(x) for branch in self.branches]
        x = torch.cat([*sides, mean.expand_as(sides[0])], dim=1).permute(0, 2, 3, 1)
        x = resized(x, maps[0].shape[1:3]).permute(0, 3, 1, 2)
        return self.conv_last(self.project(x))


class ChannelAttention(nn.Module):
    """Weights in (0,1) of every value of (B,C,H,W): a local and a global two-layer branch, added, then a sigmoid.

    Source: Dai et al. 2021, MS-CAM. Deviation: no batch norm in the global branch, whose single position per
    image a batch of one could not normalise.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.local = nn.Sequential(ConvNorm(width, hidden), ConvNorm(hidden, width, act=False))
        self.pooled = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.local(x) + self.pooled(F.adaptive_avg_pool2d(x, 1)))


class AFF(nn.Module):
    """Attentional feature fusion of the maps, one after the other, on the finest grid.

    Maps of other widths than the finest map's are resized and go through a 1x1 convolution first.
    Source: Dai et al. 2021, Eq. 3 (twice the weighted mean). ASSUMPTION(paper): the order and the widths; the
    hidden width (13/8 of the maps') is fitted to the counts that Table 7 prints (3.67 M, 2.06 G).
    """

    def __init__(self, channels: Sequence[int], width: int, scale: float) -> None:
        super().__init__()
        width = channels[0]
        self.convs = nn.ModuleList(nn.Conv2d(c, width, 1) if c != width else nn.Identity() for c in channels)
        self.attention = nn.ModuleList(ChannelAttention(width, width * 13 // 8) for _ in channels[1:])
        self.conv_last = nn.Conv2d(width, 1, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[1:3]
        sides = [conv(resized(x, size).permute(0, 3, 1, 2)) for conv, x in zip(self.convs, maps, strict=True)]
        fused = sides[0]
        for side, attention in zip(sides[1:], self.attention, strict=True):
            weight = attention(fused + side)
            fused = 2 * (weight * fused + (1 - weight) * side)
        return self.conv_last(fused)


HEADS: dict[str, type[nn.Module]] = {
    "single": SingleHead,
    "lff": LFF,
    "mlp": MLPHead,
    "aspp": ASPP,
    "aff": AFF,
}
