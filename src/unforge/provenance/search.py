"""QuantLoss Opt: the tokens of all scales whose sum comes nearest to a feature map.

A greedy multi-scale quantizer rounds one scale after the other and does not find the tokens an image was made
of. The search relaxes tokens to distributions over the codes, descends on the squared error while a temperature
falls, and takes the likeliest codes; further rounds do the same for the coarse scales, with the fine ones fixed.

Source: iar_provenance, Sec. 3 and Alg. 3; what a round begins with and which part is fixed: released code.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from unforge.provenance.config import Search
from unforge.provenance.contract import Codec, Scales

COPIES = 6
"""Arrays of the size of the logits that live at once: logits, two moments, probabilities (which become the
gradient) and a scratch; one more for all that is small (measured at VAR's size: 5.5)."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Result of a search."""

    features: Tensor
    """(B,C,h,w), f_Z of the tokens."""
    tokens: Tensor
    """(B,N) int64, coarse to fine."""
    searched: Tensor
    """(B,) bool: whether the tokens are the search's (always, when faithful) or the greedy ones."""


def scales(tokenizer: Codec) -> Scales:
    """The multi-scale quantizer of a tokenizer. ValueError if it has no shared codes on several scales."""
    quantizer = getattr(tokenizer, "quantizer", tokenizer)
    if not (hasattr(quantizer, "scales") and hasattr(quantizer, "codebook") and hasattr(quantizer, "enlarged")):
        raise ValueError(
            f"{type(tokenizer).__name__} has no codes on several scales: token search is for multi-scale tokenizers"
        )
    return cast(Scales, quantizer)


def batch_size(quantizer: Scales, memory: int) -> int:
    """How many images can be searched at a time within `memory` bytes, at least one."""
    tokens = sum(side * side for side in quantizer.scales)
    return max(1, memory // (4 * COPIES * tokens * len(quantizer.codebook)))


@torch.no_grad()
def search(quantizer: Scales, features: Tensor, tokens: Tensor, settings: Search) -> Found:
    """Tokens for `features` (B,C,h,w), begun at `tokens` (B,N) int64.

    Images do not see each other; but for rounding, their number changes no result. Faithful: what the rounds end
    with. Else per image that or `tokens`, whichever is nearer to `features`, so never worse than before.
    Deviation: the released code averages the error over the batch, which changes Adam's steps with its size; here
    each image has its own.
    ValueError if `tokens` do not fit the scales.
    """
    count = sum(side * side for side in quantizer.scales)
    if tokens.shape != (len(features), count):
        raise ValueError(f"tokens {tuple(tokens.shape)}: the scales {quantizer.scales} have ({len(features)},{count})")
    features = features.float()
    if not len(features):
        return Found(features=features, tokens=tokens, searched=torch.ones(0, dtype=torch.bool))
    parts = []
    size = batch_size(quantizer, settings.memory)
    for start in range(0, len(features), size):
        found = tokens[start : start + size]
        for free in settings.rounds(len(quantizer.scales)):
            found = _round(quantizer, features[start : start + size], found, free, settings)
        parts.append(found)
    searched = torch.cat(parts)
    summed = assembled(quantizer, searched)
    taken = torch.ones(len(features), dtype=torch.bool, device=features.device)
    if not settings.faithful:
        greedy = assembled(quantizer, tokens)
        taken = _error(summed, features) < _error(greedy, features)
        searched = torch.where(taken[:, None], searched, tokens)
        summed = torch.where(taken[:, None, None, None], summed, greedy)
    return Found(features=summed, tokens=searched, searched=taken)


def assembled(quantizer: Scales, tokens: Tensor, first: int = 0) -> Tensor:
    """Sum of the parts of scales `first` and finer, (B,N) tokens of all scales to (B,C,h,w)."""
    side, codes = quantizer.scales[-1], quantizer.codebook.float()
    total = torch.zeros(len(tokens), codes.shape[1], side, side, device=tokens.device)
    start = 0
    for scale, side in enumerate(quantizer.scales):
        if scale >= first:
            own = codes[tokens[:, start : start + side * side]]
            total += quantizer.enlarged(scale, own.transpose(1, 2).reshape(len(own), codes.shape[1], side, side))
        start += side * side
    return total


def _round(quantizer: Scales, features: Tensor, tokens: Tensor, free: int, settings: Search) -> Tensor:
    """`tokens` with those of the first `free` scales searched anew, all others fixed."""
    codes = quantizer.codebook.float()
    fixed = assembled(quantizer, tokens, free)
    count = sum(side * side for side in quantizer.scales[:free])
    logits = torch.zeros(len(tokens), count, len(codes), device=features.device)
    logits.scatter_(2, tokens[:, :count, None], settings.start).requires_grad_(True)
    optimise = torch.optim.Adam([logits], lr=settings.lr, eps=settings.eps, fused=True)
    scratch = torch.empty_like(logits)
    first, last = settings.temperature
    for step in range(settings.iterations):
        share = step / (settings.iterations - 1) if settings.iterations > 1 else 1.0
        temperature = first * (last / first) ** share
        logits.grad = None
        logits.grad = gradient(quantizer, codes, logits.detach(), fixed, features, temperature, scratch)
        descend(optimise)
    return torch.cat([logits.argmax(dim=2), tokens[:, count:]], dim=1)


def gradient(
    quantizer: Scales,
    codes: Tensor,
    logits: Tensor,
    fixed: Tensor,
    features: Tensor,
    temperature: float,
    scratch: Tensor,
) -> Tensor:
    """Derivative by the logits (B,n,V) of half the mean squared error between what they stand for, added to
    `fixed` (B,C,h,w), and `features`; images are summed. `scratch` (B,n,V) is overwritten.

    Written out, as autograd keeps more: with p = softmax(logits / t), z = p codes and g = d error / d z, it is
    p (g codes^T - g z) / t, computed in the place of p. Only z, which is small, goes through autograd.
    """
    probability = torch.div(logits, temperature, out=scratch).softmax(dim=2)
    mean = (probability @ codes).requires_grad_(True)
    with torch.enable_grad():
        error = _error(fixed + _spread(quantizer, mean), features).sum() / 2
    (slope,) = torch.autograd.grad(error, [mean])
    offset = (slope * mean.detach()).sum(dim=2, keepdim=True)
    torch.matmul(slope, codes.T, out=scratch)
    return probability.mul_(scratch.sub_(offset).div_(temperature))


def _spread(quantizer: Scales, values: Tensor) -> Tensor:
    """Sum of the parts of the coarsest scales, whose codes are `values` (B,n,C), to (B,C,h,w)."""
    total, start = torch.zeros((), device=values.device), 0
    for scale, side in enumerate(quantizer.scales):
        own = values[:, start : start + side * side]
        if not own.shape[1]:
            break
        total = total + quantizer.enlarged(scale, own.transpose(1, 2).reshape(*own.shape[::2], side, side))
        start += side * side
    return total


def descend(optimise: torch.optim.Optimizer) -> None:
    """One step, without torch's decorator around it, which imports its compiler: more than a second."""
    step: Any = inspect.unwrap(type(optimise).step)
    step(optimise)


def _error(left: Tensor, right: Tensor) -> Tensor:
    return (left - right).square().flatten(1).mean(dim=1)
