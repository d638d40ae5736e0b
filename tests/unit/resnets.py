"""Names and shapes of torchvision's ResNets, written down from their layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def norm(name: str, channels: int) -> Shapes:
    shapes: Shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def trunk(depths: Sequence[int], bottleneck: bool, stem: int = 64, width: int = 64, kernel: int = 7) -> Shapes:
    """All but the classifier."""
    shapes: Shapes = {"conv1.weight": (stem, 3, kernel, kernel), **norm("bn1", stem)}
    channels = stem
    for stage, depth in enumerate(depths):
        inner = width * 2**stage
        out = 4 * inner if bottleneck else inner
        for place in range(depth):
            block = f"layer{stage + 1}.{place}"
            sides = [(inner, channels, 1), (inner, inner, 3), (out, inner, 1)]
            if not bottleneck:
                sides = [(inner, channels, 3), (inner, inner, 3)]
            for i, (above, below, side) in enumerate(sides, start=1):
                shapes |= {f"{block}.conv{i}.weight": (above, below, side, side), **norm(f"{block}.bn{i}", above)}
            if place == 0 and channels != out:
                shapes |= {f"{block}.downsample.0.weight": (out, channels, 1, 1), **norm(f"{block}.downsample.1", out)}
            channels = out
    return shapes


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def filled(shapes: Shapes) -> dict[str, Tensor]:
    """A state dict in which every tensor has a value of its own."""
    return {
        name: torch.full(shape, 7 + place, dtype=torch.int64)
        if name.endswith("num_batches_tracked")
        else torch.full(shape, 1e-3 * (1 + place))
        for place, (name, shape) in enumerate(shapes.items())
    }
