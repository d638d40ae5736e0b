"""Two tiny language models to train sharded, and their data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.unit.train import fakes
from unforge.train import sharded
from unforge.train.distributed import World
from unforge.types import Losses

WORDS = 31
RECIPE = replace(fakes.RECIPE, ema=0.9, clip=0.5, accumulate=2)


@dataclass(frozen=True, kw_only=True)
class Sentences:
    ids: Tensor
    weight: Tensor
    """Float, like an image."""


@dataclass
class Tokens:
    ids: Tensor

    def batch(self, device: torch.device) -> Sentences:
        return Sentences(ids=self.ids.to(device), weight=torch.full((1,), 1 + 2**-20, device=device))


class Sequences:
    """Counting sequences; sample i of step t depends on both only."""

    def load(self, step: int, first: int, count: int) -> Tokens:
        starts = torch.tensor([(7 * step + 3 * i) % 29 for i in range(first, first + count)])
        return Tokens((starts[:, None] + torch.arange(9)) % WORDS)


class Toy(nn.Module):
    """What is common: a bias and a frozen scale of its own, a buffer that moves, and the contract."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bias = nn.Parameter(torch.zeros(WORDS))
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("seen", torch.zeros(1))
        self.fit = sharded.fit

    def logits(self, ids: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(self, batch: Sentences) -> Losses:
        """Also says what became of the batch's weight: 1 + 2^-20 is no bfloat16 number."""
        ids = batch.ids
        if self.training:
            self.seen += 1
        found = nn.functional.cross_entropy(self.logits(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())
        return Losses(total=found, terms={"language": found, "rounded": (batch.weight == 1).float().sum()})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        own = [p for p in self.parameters() if p is not self.bias and p.requires_grad]
        return [
            {"params": own, "weight_decay": weight_decay},
            {"params": [self.bias], "weight_decay": 0.0, "lr_scale": 2.0},
        ]


class Chain(Toy):
    """Tied embeddings around two linear layers, of sizes that two processes do not share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 9)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(9, 9), nn.LayerNorm(9), nn.GELU()) for _ in range(2))
        self.out = nn.Linear(9, WORDS, bias=False)
        self.out.weight = self.words.weight

    def shard_units(self) -> list[nn.Module]:
        return list(self.layers)

    def logits(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.out(x) * self.scale[0] + self.bias


class Speaker(Toy):
    """transformers' Llama of two layers, with tied embeddings and gradient checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, tie_word_embeddings=True, attn_implementation="eager",
        )  # fmt: skip
        self.language_model = LlamaForCausalLM(config)
        self.language_model.activation_checkpointing_enable({"use_reentrant": False})

    def shard_units(self) -> list[str]:
        return [f"language_model.model.layers.{i}" for i in range(2)]

    def logits(self, ids: Tensor) -> Tensor:
        return self.language_model(input_ids=ids, use_cache=False).logits + self.bias


def validate(model: Any, world: World) -> tuple[str, float]:
    """Best early, by a weight that must be whole; the first process calls the model more often than the other."""
    ids = Sequences().load(0, 0, 4).ids
    for _ in range(2 if world.first else 1):
        logits = model.logits(ids).float()
    return "small", -float(model.bias.abs().sum()) - 1e-3 * float(logits.square().mean())
