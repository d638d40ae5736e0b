"""The hierarchical mask loss: a prefix of the tokens is held to a blurred mask, the blurrier the shorter it is.

Source: HiMTok, its paper and its released code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Form = Literal["paper", "released"]
SIZE, LATENTS = 256, 32
"""What the released blur is made for: the sides of its masks (pixels), and its tokens."""


def terms(logits: Tensor, target: Tensor, pooled: bool = False) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and Dice loss of logits (B,1,S,S) against targets in [0,1], means over the masks.

    `pooled`: Dice of all masks of the batch as if they were one, as the released code has it.
    """
    bce = F.binary_cross_entropy_with_logits(logits, target)
    probability, own = logits.sigmoid(), target
    if pooled:
        probability, own = probability.flatten()[None], own.flatten()[None]
    probability, own = probability.flatten(1), own.flatten(1)
    both = (probability * own).sum(1)
    dice = 1 - (2 * both + 1e-6) / (probability.sum(1) + own.sum(1) + 1e-6)
    return bce, dice.mean()


def sigma(length: int, latents: int = LATENTS, size: int = SIZE) -> float:
    """Deviation of the blur (pixels) for a prefix of `length` tokens: 100 / (length + 2) - 2 at 32 tokens and 256
    pixels. ASSUMPTION(paper): with other numbers, the length in proportion to the tokens, the deviation to the side."""
    full = length * LATENTS / latents if length > 0 else length
    return (100 / (full + 2) - 2) * size / SIZE


def blurred(target: Tensor, deviation: float) -> Tensor:
    """(B,1,S,S) under a Gaussian that ends at 3 deviations, with zeros around, divided by the mask's maximum (at
    least 1e-6)."""
    side, radius = target.shape[-1], math.ceil(3 * deviation)
    place = torch.arange(side, device=target.device, dtype=target.dtype)
    distance = (place[:, None] - place[None, :]).abs()
    offsets = torch.arange(-radius, radius + 1, device=target.device, dtype=target.dtype)
    kernel = torch.exp(-distance.square() / (2 * deviation**2)) * (distance <= radius)
    kernel = kernel / torch.exp(-offsets.square() / (2 * deviation**2)).sum()
    soft = kernel @ target @ kernel.T
    return soft / soft.amax(dim=(2, 3), keepdim=True).clamp(min=1e-6)


def draw(form: Form, latents: int, count: int, rng: np.random.Generator) -> list[tuple[int, float]]:
    """`count` prefixes without repetition: (tokens kept, length that the blur is made for).

    `paper`: a length l of 1 .. latents - 1 with probability in proportion to 1 / (l + 8). ASSUMPTION(paper): no
    prefix is empty or whole. `released`: lengths -1 .. latents - 2, in proportion to 1 / (l + 10), where -1 keeps
    all tokens but the last and is held to the blur of -1 (98 pixels).
    """
    if form not in ("paper", "released"):
        raise ValueError(f"form {form!r} of the hierarchical mask loss: paper and released are accepted")
    released = form == "released"
    rank = np.arange(latents if released else latents - 1)
    weights = 1 / (rank + 9)
    lengths = rng.choice(rank, size=min(count, len(rank)), p=weights / weights.sum(), replace=False)
    if not released:
        return [(int(rank) + 1, int(rank) + 1) for rank in lengths]
    return [(int(rank) - 1 if rank else latents - 1, int(rank) - 1) for rank in lengths]


def loss(
    decode: Callable[[int], Tensor],
    target: Tensor,
    prefixes: Sequence[tuple[int, float]],
    *,
    latents: int,
    form: Form,
    dice: float,
) -> tuple[Tensor, Tensor]:
    """Loss of the whole decoding, and the mean over the prefixes: binary cross-entropy + `dice` * Dice of logits
    `decode(tokens kept)` (B,1,S,S), the whole against `target`, each prefix against its blurred target.

    `released`: of the prefixes the last alone counts (the others were computed and dropped), and Dice is pooled.
    """
    pooled, size = form == "released", target.shape[-1]

    def one(logits: Tensor, wanted: Tensor) -> Tensor:
        cross_entropy, overlap = terms(logits, wanted, pooled)
        return cross_entropy + dice * overlap

    counted = prefixes[-1:] if form == "released" else prefixes
    parts = [one(decode(kept), blurred(target, sigma(length, latents, size))) for kept, length in counted]
    return one(decode(latents), target), torch.stack(parts).mean()
