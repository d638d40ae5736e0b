"""Next-token priors: row by row (LlamaGen, Taming), or trained in random orders that give way to that (RAR)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.priors.base import Prior, PriorConfig
from unforge.priors.layers import STD, Places, Transformer, chosen, embedding
from unforge.tokenizers.base import Tokenizer
from unforge.types import Losses


@dataclass(frozen=True, kw_only=True)
class Config(PriorConfig):
    random_order: bool = False
    """RAR: a share of the training maps goes in a random order, and each place is told which place comes next."""
    anneal: tuple[float, float] = (0.5, 0.75)
    """Shares of the run between which that share of maps falls from 1 to 0. Source: RAR (epochs 200 and 300 of
    400)."""


class NextToken(Prior):
    """Each token given those before it. Sampled row by row."""

    config: Config

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.side = tokenizer.grid
        self.embed = embedding(self.codes, config.width)
        self.start = nn.Parameter(torch.randn(1, 1, config.width) * STD)
        self.places = Places(self.side, config.width)
        if config.random_order:
            self.following = Places(self.side, config.width)
        self.transformer = Transformer(config.depth, config.width, config.heads)
        self.head = nn.Linear(config.width, self.codes)

    @property
    def draws(self) -> tuple[int, ...]:
        return (self.side**2,)

    def logits(self, tokens: Tensor, orders: Tensor | None = None) -> Tensor:
        """(B,N,K) of each token given those before it in the order: place i of the result is for place
        `orders[:, i]` of the map. `orders` (B,N): None for row by row."""
        if orders is None:
            orders = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        earlier = orders[:, :-1]
        inputs = self.embed(tokens.gather(1, earlier)) + self.places()[earlier]
        inputs = torch.cat([self.start.expand(len(tokens), -1, -1), inputs], dim=1)
        if self.config.random_order:
            inputs = inputs + self.following()[orders]
        return self.head(self.transformer(inputs, causal=True))

    def loss(self, batch: Tensor) -> Losses:
        """Cross-entropy of the tokens, mean over places. In training mode RAR draws its orders from torch's
        generator."""
        orders = None
        if self.training:
            if self.config.random_order:
                orders = self.orders(batch)
            self.step += 1
        logits = self.logits(batch, orders)
        targets = batch if orders is None else batch.gather(1, orders)
        error = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return Losses(total=error, terms={"bits": error / math.log(2)})

    def randomness(self) -> float:
        """Share of maps that go in a random order at the present step."""
        if not self.config.random_order or not self.config.steps:
            return 0.0
        first, last = self.config.anneal
        return min(1.0, max(0.0, (last - int(self.step) / self.config.steps) / (last - first)))

    def orders(self, tokens: Tensor) -> Tensor:
        """(B,N): each map's a random permutation with probability `randomness`, else row by row."""
        rows = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        shuffled = torch.rand(tokens.shape, device=tokens.device).argsort(1)
        return torch.where(torch.rand(len(tokens), 1, device=tokens.device) < self.randomness(), shuffled, rows)

    def bits(self, tokens: Tensor) -> Tensor:
        logits = self.logits(tokens)
        return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").mean(1) / math.log(2)

    def drawn(self, uniform: Tensor, temperature: float) -> Tensor:
        places = self.side**2
        seen = self.transformer.empty(len(uniform), places)
        positions = self.places()
        inputs, found = self.start.expand(len(uniform), -1, -1), []
        for place in range(places):
            if self.config.random_order:
                inputs = inputs + self.following()[place]
            logits = self.head(self.transformer(inputs, seen=seen))[:, 0]
            found.append(chosen((logits / temperature).softmax(-1), uniform[:, place]))
            inputs = (self.embed(found[-1]) + positions[place])[:, None]
        return torch.stack(found, dim=1)


SMALL = Config(depth=3, width=96)


def build(config: Config, tokenizer: Tokenizer) -> NextToken:
    """An untrained prior."""
    return NextToken(config, tokenizer)
