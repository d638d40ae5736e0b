"""Next-scale priors: all tokens of a scale at once, given the scales before it (VAR), or their bits (Infinity)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.priors.base import Prior, PriorConfig
from unforge.priors.layers import STD, Places, Transformer, chosen, embedding
from unforge.tokenizers.base import Tokenizer
from unforge.tokenizers.multiscale import BinarySpherical, shrunk, split
from unforge.types import Losses


@dataclass(frozen=True, kw_only=True)
class Config(PriorConfig):
    flips: float = 0.0
    """Bits only: in training each bit that later scales see is flipped with a probability drawn for each map from 0
    to this."""


class NextScale(Prior):
    """Each scale given those before it: a place of scale k begins as the features that scales before k add up to,
    shrunk to its side, and looks at all places of scales up to k. Source: VAR; Infinity."""

    config: Config

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        """ValueError when bits are to be flipped where there are none."""
        super().__init__(config, tokenizer)
        self.quantizer = copy.deepcopy(tokenizer.quantizer).requires_grad_(False)
        """The tokenizer's own, frozen, and saved with the weights."""
        self.bitwise = isinstance(self.quantizer, BinarySpherical)
        if config.flips and not self.bitwise:
            raise ValueError(f"flips {config.flips}: there are no bits to flip, give 0")
        self.scales: tuple[int, ...] = self.quantizer.scales
        channels = self.quantizer.bits if self.bitwise else self.quantizer.codebook.shape[1]
        self.word = nn.Linear(channels, config.width)
        nn.init.normal_(self.word.weight, std=0.5)  # features are small: residual codes add up to about 0.2
        nn.init.zeros_(self.word.bias)
        self.start = nn.Parameter(torch.randn(1, 1, config.width) * STD)
        self.places = nn.ModuleList(Places(side, config.width) for side in self.scales)
        self.levels = embedding(len(self.scales), config.width)
        self.transformer = Transformer(config.depth, config.width, config.heads)
        self.head = nn.Linear(config.width, channels if self.bitwise else self.codes)
        level = torch.cat([torch.full((side * side,), scale) for scale, side in enumerate(self.scales)])
        self.register_buffer("mask", level[:, None] >= level, persistent=False)

    @property
    def draws(self) -> tuple[int, ...]:
        places = sum(side * side for side in self.scales)
        return (places, self.quantizer.bits) if self.bitwise else (places,)

    def vectors(self, tokens: Tensor) -> Tensor:
        """(B,C,p,p) that one scale's tokens (B,p,p) or bits (B,p,p,d) stand for."""
        if self.bitwise:
            signs = torch.where(tokens, 1.0, -1.0).to(self.start.dtype)
            return signs.permute(0, 3, 1, 2) / self.quantizer.bits**0.5
        return F.embedding(tokens, self.quantizer.codebook).permute(0, 3, 1, 2)

    def before(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Features (B,C,h,w) that the scales add up to, before each but the first: of all scales' tokens but the
        last's."""
        found: list[Tensor] = []
        for scale, part in enumerate(parts[:-1]):
            added = self.quantizer.enlarged(scale, self.vectors(part))
            found.append(found[-1] + added if found else added)
        return found

    def begun(self, scale: int, features: Tensor | None, batch: int) -> Tensor:
        """What the places of a scale begin as (B,p^2,width): the start token for the first."""
        own = self.places[scale]() + self.levels.weight[scale]
        if features is None:
            return (self.start + own).expand(batch, -1, -1)
        return self.word(shrunk(features, self.scales[scale]).flatten(2).transpose(1, 2)) + own

    def logits(self, features: Sequence[Tensor], batch: int) -> Tensor:
        """(B,N,K), or (B,N,d) of bits, of all scales, from the features before each but the first."""
        inputs = [self.begun(scale, part, batch) for scale, part in enumerate([None, *features])]
        return self.head(self.transformer(torch.cat(inputs, dim=1), mask=self.mask))

    def errors(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Negative log-likelihood (B,N) of tokens, of bits summed."""
        if self.bitwise:
            return F.binary_cross_entropy_with_logits(logits, tokens.to(logits.dtype), reduction="none").sum(2)
        return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")

    def loss(self, batch: Tensor) -> Losses:
        """Mean over places of all scales. In training mode flips are drawn from torch's generator."""
        parts, targets = split(batch, self.scales), batch
        features = self.before(parts)
        if self.training:
            if self.config.flips:
                features, targets = self.corrected(parts)
            self.step += 1
        error = self.errors(self.logits(features, len(batch)), targets).mean()
        return Losses(total=error, terms={"bits": error / math.log(2)})

    @torch.no_grad()
    def corrected(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Features before each scale with some bits of earlier scales flipped, and bits that make good for it.

        Source: Infinity, bitwise self-correction. Deviation: what the bits are to add up to is f_Z and not the
        encoder's f, which a token map does not have; a map in which nothing was flipped yet keeps its own bits.
        """
        first = parts[0]
        whole = sum(self.quantizer.enlarged(scale, self.vectors(part)) for scale, part in enumerate(parts))
        rate = torch.rand(len(first), 1, 1, 1, device=first.device) * self.config.flips
        flipped = torch.zeros_like(rate, dtype=torch.bool)
        features: list[Tensor] = []
        targets = []
        for scale, part in enumerate(parts):
            if features:
                rest = shrunk(whole - features[-1], self.scales[scale]).permute(0, 2, 3, 1)
                part = torch.where(flipped, rest > 0, part)
            targets.append(part.flatten(1, 2))
            flips = torch.rand(part.shape, device=part.device) < rate
            flipped = flipped | flips.any(dim=(1, 2, 3)).view_as(flipped)
            added = self.quantizer.enlarged(scale, self.vectors(part ^ flips))
            features.append(features[-1] + added if features else added)
        return features[:-1], torch.cat(targets, dim=1)

    def bits(self, tokens: Tensor) -> Tensor:
        logits = self.logits(self.before(split(tokens, self.scales)), len(tokens))
        return self.errors(logits, tokens).mean(1) / math.log(2)

    def drawn(self, uniform: Tensor, temperature: float) -> Tensor:
        batch = len(uniform)
        seen = self.transformer.empty(batch, uniform.shape[1])
        features: Tensor | None = None
        found = []
        for scale, part in enumerate(split(uniform, self.scales)):
            logits = self.head(self.transformer(self.begun(scale, features, batch), seen=seen)) / temperature
            part = part.flatten(1, 2)
            found.append(part < logits.sigmoid() if self.bitwise else chosen(logits.softmax(-1), part))
            vectors = self.vectors(found[-1].unflatten(1, (self.scales[scale], self.scales[scale])))
            added = self.quantizer.enlarged(scale, vectors)
            features = added if features is None else features + added
        return torch.cat(found, dim=1)


SMALL = Config(depth=3, width=96)


def build(config: Config, tokenizer: Tokenizer) -> NextScale:
    """An untrained prior. ValueError for a tokenizer without scales."""
    if not hasattr(tokenizer.quantizer, "scales"):
        raise ValueError(f"{type(tokenizer).__name__} has one scale: a next-scale prior needs several")
    return NextScale(config, tokenizer)
