"""What every prior is, and the token maps it learns from."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from unforge import seeds
from unforge.tokenizers.base import Tokenizer
from unforge.types import Losses, Recipe

TRAINING = Recipe(
    source="ours: what learns in some hundred steps on one CPU thread",
    optimiser="adamw",
    lr=3e-3,
    min_lr=3e-5,
    batch=16,
    epochs=1,
    samples_per_epoch=8000,
    warmup_epochs=0.05,
    weight_decay=0.05,
    betas=(0.9, 0.95),
    clip=1.0,
)
"""Small priors."""

# ASSUMPTION(paper): it takes released priors and trains none. Ours have their sizes, and this is how RAR's learn.
PAPER = Recipe(
    source="RAR, released configuration (for all families)",
    optimiser="adamw",
    lr=4e-4,
    min_lr=1e-5,
    batch=2048,
    epochs=400,
    samples_per_epoch=1281167,
    warmup_epochs=100,
    weight_decay=0.03,
    betas=(0.9, 0.96),
    clip=1.0,
)

SAMPLED_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Size of a prior's transformer, and how it learns."""

    depth: int = 4
    width: int = 128
    heads: int = 4
    steps: int = 0
    """Of the run it is trained in, which a schedule of the kind may go by; 0: not trained."""
    recipe: Recipe = field(default_factory=lambda: TRAINING)

    def for_steps(self, steps: int) -> Self:
        """The same for a run of `steps`."""
        return replace(self, steps=steps)


class Prior(nn.Module):
    """A distribution over the token maps of one tokenizer. Unconditional: the released ones go by class or text.

    Token maps are what `Tokenizer.quantize` gives: (B,N) int64, or bits (B,N,d) bool.
    """

    step: Tensor

    def __init__(self, config: PriorConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.codes: int = tokenizer.quantizer.codes
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def draws(self) -> tuple[int, ...]:
        """Shape of the uniform numbers that one map takes."""
        raise NotImplementedError

    def loss(self, batch: Tensor) -> Losses:
        """What is minimised on token maps; `bits` among its terms: bits a token. A call in training mode is a step."""
        raise NotImplementedError

    def bits(self, tokens: Tensor) -> Tensor:
        """Negative log-likelihood (B,) of token maps in bits a token; of a diffusion an upper bound."""
        raise NotImplementedError

    def drawn(self, uniform: Tensor, temperature: float) -> Tensor:
        """Token maps from uniform numbers (B,*draws) in [0,1)."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, keys: Sequence[str], seed: int, temperature: float = 1.0) -> Tensor:
        """One token map for each key, which depends on (seed, key, temperature) only; on the prior's device.

        Computed in float64: in float32 the rounding of a product depends on how many maps are made at once, and
        now and then another token is drawn. ValueError for a temperature that is not positive, or for no key.
        """
        if temperature <= 0 or not math.isfinite(temperature) or not keys:
            raise ValueError(f"temperature {temperature}, {len(keys)} keys: give a positive number and some keys")
        exact = copy.deepcopy(self).double().eval()
        found = []
        for first in range(0, len(keys), SAMPLED_AT_ONCE):
            some = keys[first : first + SAMPLED_AT_ONCE]
            uniform = np.stack([seeds.generator(seed, key, "sample").random(self.draws) for key in some])
            found.append(exact.drawn(torch.from_numpy(uniform).to(self.step.device), temperature))
        return torch.cat(found)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Decay for the transformer's and the head's matrices only: none for biases, norms and embeddings."""
        embeddings = {id(p) for m in self.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        trained = [p for p in self.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.ndim == 2 and id(p) not in embeddings]
        others = [p for p in trained if p.ndim != 2 or id(p) in embeddings]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@dataclass(frozen=True, kw_only=True)
class ViewArray:
    """A batch as loaded: what becomes of it on the device are token maps."""

    image: np.ndarray
    """(B,S,S,3) uint8."""
    tokenizer: Tokenizer

    def batch(self, device: torch.device) -> Tensor:
        return encoded(self.tokenizer, self.image, device)


class TokenMaps:
    """Endless random token maps of images in all 8 flips and quarter turns, for `unforge.train.loop`.

    Sample i of step t depends on (seed, t, i) only; images and turns are drawn with replacement. A map is made when
    it is drawn: a short run draws fewer than there are.
    """

    def __init__(self, tokenizer: Tokenizer, images: Sequence[np.ndarray], seed: int) -> None:
        """`images`: (S,S,3) uint8 of the tokenizer's size, indexed lazily. ValueError when there is none."""
        if not len(images):
            raise ValueError("no images: a prior learns from at least one")
        self.tokenizer, self.images, self.seed = tokenizer, images, seed

    def load(self, step: int, first: int, count: int) -> ViewArray:
        """Samples first .. first + count - 1 of a step."""
        views = [self.view(step, index) for index in range(first, first + count)]
        return ViewArray(image=np.stack(views), tokenizer=self.tokenizer)

    def view(self, step: int, index: int) -> np.ndarray:
        """Image (S,S,3) uint8 of one sample."""
        rng = seeds.generator(self.seed, f"{step}/{index}", "prior")
        image = np.asarray(self.images[int(rng.integers(len(self.images)))])
        turn = int(rng.integers(8))
        return np.rot90(image[:, ::-1] if turn >= 4 else image, turn % 4)


class Held:
    """What selects the weights: minus the bits a token of token maps that are not trained on."""

    def __init__(self, tokens: Tensor, *, batch: int = 64) -> None:
        """`tokens`: (M,N) int64 or (M,N,d) bool. ValueError when there is none."""
        if tokens.ndim < 2 or not len(tokens):
            raise ValueError(f"tokens {tuple(tokens.shape)} to validate on: give at least one map")
        self.tokens, self.batch = tokens, batch

    def __call__(self, model: Any, world: Any) -> tuple[str, float]:
        """Every process measures all of them, so all get the same value."""
        parts = [model.bits(part.to(world.device)).double() for part in self.tokens.split(self.batch)]
        return "negative_bits", -float(torch.cat(parts).mean())


@torch.no_grad()
def encoded(tokenizer: Tokenizer, images: np.ndarray, device: torch.device) -> Tensor:
    """Token maps (B,N[,d]) of images (B,S,S,3) uint8."""
    values = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float().div_(255)
    return tokenizer.quantize(tokenizer.encode(values.contiguous())).tokens


def token_maps(tokenizer: Tokenizer, images: Sequence[np.ndarray], *, batch: int = 64) -> Tensor:
    """Token maps (M,N[,d]), on the CPU, of images (S,S,3) uint8 as they are. ValueError when there is none."""
    if not len(images):
        raise ValueError("no images: there is nothing to tokenize")
    parts = [images[first : first + batch] for first in range(0, len(images), batch)]
    return torch.cat([encoded(tokenizer, np.stack(part), tokenizer.step.device).cpu() for part in parts])


def unigram_bits(training: Tensor, tokens: Tensor, codes: int, scales: Sequence[int] = ()) -> float:
    """Bits a token of `tokens` under the frequencies of `training`, at each scale apart: what a prior has to beat.

    `scales`: sides of the scales, none for one scale. Of bits each is taken by itself. Frequencies are counted with
    one more of each, so that none is 0.
    """
    sizes = [side * side for side in scales] or [training.shape[1]]
    total = 0.0
    for seen, found in zip(training.split(sizes, dim=1), tokens.split(sizes, dim=1), strict=True):
        if found.dtype == torch.bool:
            share = (seen.double().sum((0, 1)) + 1) / (seen.shape[0] * seen.shape[1] + 2)
            total -= float(torch.where(found, share.log2(), (1 - share).log2()).sum())
        else:
            counts = torch.bincount(seen.flatten(), minlength=codes).double() + 1
            total -= float((counts / counts.sum()).log2()[found].sum())
    return total / (tokens.shape[0] * tokens.shape[1])
