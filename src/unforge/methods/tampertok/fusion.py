"""How features of a forensic expert get into a multimodal model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Aligned(nn.Module):
    """An expert's map (B,c,h,w) on the grid of a backbone's features: (B,N,C).

    Resized (bilinearly), normalised over its channels, projected 1x1. Source: TamperTok, Eq. 8 and 13.
    ASSUMPTION(paper): the normalisation; maps of different experts have no common scale.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, width)

    def forward(self, x: Tensor, side: int) -> Tensor:
        """On a grid of `side` x `side`, row by row."""
        if tuple(x.shape[2:]) != (side, side):
            x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
        return self.project(self.norm(x.flatten(2).transpose(1, 2)))


class SwEI(nn.Module):
    """Scene-wise Expert Injection behind one vision layer. Source: TamperTok, Eq. 8-10.

    The last layer of the FFN starts at 0: training starts exactly from the backbone (ours).
    ASSUMPTION(paper): each layer has projections of its own; W are linear without bias.
    """

    def __init__(self, width: int, channels: tuple[int, int], ratio: float) -> None:
        super().__init__()
        self.shallow, self.deep = Aligned(channels[0], width), Aligned(channels[1], width)
        self.query, self.key_shallow, self.key_deep = (nn.Linear(width, width, bias=False) for _ in range(3))
        hidden = int(width * ratio)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        nn.init.zeros_(self.ffn[2].weight)
        nn.init.zeros_(self.ffn[2].bias)

    def forward(self, features: Tensor, shallow: Tensor, deep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The features (B,N,C) with the experts', what was fused of the experts' (B,N,C), and the weights (B,N,2) of
        `shallow` and `deep` (B,c,h,w); N is a square."""
        side = int(features.shape[1] ** 0.5)
        experts = torch.stack([self.shallow(shallow, side), self.deep(deep, side)], dim=2)
        keys = torch.stack([self.key_shallow(experts[:, :, 0]), self.key_deep(experts[:, :, 1])], dim=2)
        scores = (keys * self.query(features)[:, :, None]).sum(-1) / features.shape[-1] ** 0.5
        weights = scores.softmax(-1)
        fused = (weights[..., None] * experts).sum(2)
        return features + self.ffn(fused), fused, weights


def intensity(fused: Tensor, features: Tensor, counts: Sequence[int]) -> Tensor:
    """RMS of the fused experts' features over that of the backbone's, of each image: the terms of I_avg.

    Both (T,N,C), T the tiles of all images, `counts` of each. Source: TamperTok, Eq. 11-13 (whose mean over the
    images is left to the reader of the signals).
    """
    found = []
    for expert, own in zip(fused.float().split(list(counts)), features.float().split(list(counts)), strict=True):
        found.append(expert.square().mean().sqrt() / own.square().mean().sqrt().clamp_min(1e-12))
    return torch.stack(found)


class Injection(nn.Module):
    """SwEI behind several vision layers, by forward hooks on them.

    `give` the expert's maps before the vision tower runs, `take` the intensities after it.
    """

    def __init__(self, layers: Sequence[int], width: int, channels: tuple[int, int], ratio: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({str(layer): SwEI(width, channels, ratio) for layer in layers})
        self.maps: tuple[Tensor, Tensor] | None = None
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def attach(self, layers: nn.ModuleList) -> None:
        """Hook the blocks to vision layers, counted from 1. ValueError for a layer that is not there."""
        for name, block in self.blocks.items():
            if not 1 <= int(name) <= len(layers):
                raise ValueError(f"SwEI behind vision layer {name}: there are 1 to {len(layers)}")
            layers[int(name) - 1].register_forward_hook(self._hook(int(name), block))

    def give(self, maps: tuple[Tensor, Tensor] | None) -> None:
        """Shallow and deep maps (T,c,h,w) for the next pass (None: nothing is injected)."""
        self.maps, self.seen = maps, {}

    def take(self, counts: Sequence[int]) -> dict[str, Tensor]:
        """`i_avg_<layer>` (B,) of the last pass."""
        return {f"i_avg_{layer}": intensity(*pair, counts) for layer, pair in sorted(self.seen.items())}

    def _hook(self, layer: int, block: nn.Module) -> Any:
        def injected(module: nn.Module, given: Any, output: Any) -> Any:
            if self.maps is None:
                return output
            states = output[0] if isinstance(output, tuple) else output
            features = states[:, 1:]
            mixed, fused, _ = block(features, *self.maps)
            self.seen[layer] = (fused.detach(), features.detach())
            states = torch.cat([states[:, :1], mixed.to(states.dtype)], dim=1)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return injected


class Concatenation(nn.Module):
    """Experts' features beside the image tokens, behind the projector. Source: TamperTok, Table 3.

    `dimension`: N tokens, 2H channels to H; it starts as the image tokens alone (ours). `sequence`: 2N tokens.
    ASSUMPTION(paper): the experts' shallow and deep map, projected and added, on the grid of the image tokens.
    """

    def __init__(self, kind: str, width: int, channels: tuple[int, int]) -> None:
        super().__init__()
        self.shallow, self.deep = Aligned(channels[0], width), Aligned(channels[1], width)
        self.mix = nn.Linear(2 * width, width) if kind == "dimension" else None
        if self.mix is not None:
            with torch.no_grad():
                self.mix.weight.copy_(torch.eye(width, 2 * width))
                self.mix.bias.zero_()

    def forward(self, tokens: Tensor, shallow: Tensor, deep: Tensor) -> Tensor:
        """(T,N,H) image tokens to (T,N,H) or (T,2N,H)."""
        side = int(tokens.shape[1] ** 0.5)
        expert = self.shallow(shallow, side) + self.deep(deep, side)
        return torch.cat([tokens, expert], dim=1) if self.mix is None else self.mix(torch.cat([tokens, expert], dim=2))
