"""Discrete diffusion that masks and replaces tokens (VQ-Diffusion): from all but nothing known to a token map, in a
few steps, all places at once.

Time t goes from 0 (the tokens) to T. A step keeps a token with alpha_t, replaces it by each code with beta_t and masks
it with gamma_t; once masked it stays so. `_bar`: of all steps up to t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.priors.base import Prior, PriorConfig
from unforge.priors.layers import Places, Transformer, chosen, embedding
from unforge.tokenizers.base import Tokenizer
from unforge.types import Losses

LOOKS = 3
"""Times at which each validation map is measured."""


@dataclass(frozen=True, kw_only=True)
class Config(PriorConfig):
    times: int = 12
    """Steps T of the diffusion. Source: 100 in VQ-Diffusion."""
    masked: float = 0.9
    """Share of tokens that are masked at time T; the others are any code. Source: VQ-Diffusion."""
    auxiliary: float = 1e-3
    """Weight of the cross-entropy of the tokens themselves. Source: VQ-Diffusion, released ImageNet configuration."""


class Diffusion(nn.Module):
    """The chain, without a network. Codes are 0 to K - 1, the mask is K."""

    one: Tensor
    """(T + 1,3): alpha, beta and gamma of each step."""
    all: Tensor
    """The same of all steps up to each time."""

    def __init__(self, codes: int, times: int, masked: float) -> None:
        """ValueError when there is no step or `masked` is not a share."""
        if times < 1 or not 0 <= masked <= 1:
            raise ValueError(f"times {times}, masked {masked}: give at least 1 and a share from 0 to 1")
        super().__init__()
        self.codes, self.times = codes, times
        t = torch.arange(times + 1, dtype=torch.float64) / times
        kept, hidden = 1 - t, masked * t
        alpha = torch.cat([torch.ones(1, dtype=t.dtype), kept[1:] / kept[:-1]])
        gamma = torch.cat([torch.zeros(1, dtype=t.dtype), 1 - (1 - hidden[1:]) / (1 - hidden[:-1])])
        for name, a, g in (("one", alpha, gamma), ("all", kept, hidden)):
            table = torch.stack([a, (1 - a - g).clamp(min=0) / codes, g], dim=1)
            self.register_buffer(name, table.float(), persistent=False)

    def step(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha_t, beta_t and gamma_t, each (B,1,1), of times (B,) from 1 to T."""
        alpha, beta, gamma = self.one[t][:, :, None, None].unbind(1)
        return alpha, beta, gamma

    def until(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of all steps up to t, from 0 to T."""
        alpha, beta, gamma = self.all[t][:, :, None, None].unbind(1)
        return alpha, beta, gamma

    def noised(self, tokens: Tensor, t: Tensor, uniform: Tensor) -> Tensor:
        """Tokens (B,N) at times t (B,), by uniform numbers (B,N) in [0,1)."""
        alpha, beta, _ = (value[:, :, 0] for value in self.until(t))
        replaced = ((uniform - alpha) / beta.clamp(min=1e-30)).long().clamp(max=self.codes - 1)
        noisy = torch.where(uniform < alpha + self.codes * beta, replaced, self.codes)
        return torch.where(uniform < alpha, tokens, noisy)

    def likelihood(self, noisy: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0) (B,N,K) for each x_0, of tokens (B,N) at times t (B,)."""
        alpha, beta, gamma = self.until(t)
        same = F.one_hot(noisy, self.codes + 1)[..., :-1].to(alpha.dtype)
        return torch.where((noisy == self.codes)[..., None], gamma, alpha * same + beta)

    def backward(self, believed: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Distribution (B,N,K+1) of the tokens at time t - 1, given those at t (B,N), times (B,) and what is believed
        of those at time 0: (B,N,K), summing to 1. That is the sum over x_0 of q(x_{t-1} | x_t, x_0) p(x_0)."""
        alpha, beta, gamma = self.step(t)
        alpha_less, beta_less, gamma_less = self.until(t - 1)
        masked = (noisy == self.codes)[..., None]
        same = F.one_hot(noisy, self.codes + 1)[..., :-1].to(believed.dtype)
        weight = believed / self.likelihood(noisy, t).clamp(min=1e-30)
        total = weight.sum(-1, keepdim=True)
        there = torch.where(masked, gamma, alpha * same + beta) * (alpha_less * weight + beta_less * total)
        hidden = torch.where(masked, gamma_less * total, 0.0)
        result = torch.cat([there, hidden], dim=-1)
        return result / result.sum(-1, keepdim=True)


class MaskedDiffusion(Prior):
    """Says which tokens are behind noisy ones. The time is an embedding added to every place. Deviation:
    VQ-Diffusion puts it into its norms."""

    config: Config

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.side = tokenizer.grid
        self.diffusion = Diffusion(self.codes, config.times, config.masked)
        self.embed = embedding(self.codes + 1, config.width)
        self.time = embedding(config.times, config.width)
        self.places = Places(self.side, config.width)
        self.transformer = Transformer(config.depth, config.width, config.heads)
        self.head = nn.Linear(config.width, self.codes)

    @property
    def draws(self) -> tuple[int, ...]:
        return (self.config.times + 1, self.side**2)

    def logits(self, noisy: Tensor, t: Tensor) -> Tensor:
        """(B,N,K) of the tokens at time 0, from those (B,N) at times (B,) of 1 to T.

        The network's own, and the logarithm of q(x_t | x_0), which need not be learnt. Deviation: VQ-Diffusion's
        network learns both.
        """
        inputs = self.embed(noisy) + self.places() + self.time(t - 1)[:, None]
        return self.head(self.transformer(inputs)) + self.diffusion.likelihood(noisy, t).clamp(min=1e-30).log()

    def terms(self, tokens: Tensor, t: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """For each map, means over places (B,): T times the bound's term at its time, and the cross-entropy of the
        tokens; both in nats."""
        noisy = self.diffusion.noised(tokens, t, uniform)
        logits = self.logits(noisy, t).float()
        entropy = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        truth = F.one_hot(tokens, self.codes).to(logits.dtype)
        wanted = self.diffusion.backward(truth, noisy, t)
        given = self.diffusion.backward(logits.softmax(-1), noisy, t).clamp(min=1e-30)
        divergence = (torch.xlogy(wanted, wanted) - wanted * given.log()).sum(-1)
        bound = torch.where((t == 1)[:, None], entropy, divergence)
        return self.config.times * bound.mean(1), entropy.mean(1)

    def loss(self, batch: Tensor) -> Losses:
        """The variational bound at a random time for each map, and the auxiliary cross-entropy. Draws from torch's
        generator. Source: VQ-Diffusion. Deviation: times are equally likely (released code: by their past losses)."""
        t = torch.randint(1, self.config.times + 1, (len(batch),), device=batch.device)
        bound, entropy = self.terms(batch, t, torch.rand(batch.shape, device=batch.device))
        if self.training:
            self.step += 1
        total = bound.mean() + self.config.times * self.config.auxiliary * entropy.mean()
        return Losses(total=total, terms={"bits": bound.mean() / math.log(2), "auxiliary": entropy.mean()})

    def bits(self, tokens: Tensor) -> Tensor:
        """Measured at `LOOKS` times for each map, other ones for the next, with noise that is always the same: the
        mean over maps is an unbiased estimate of the bound."""
        count, times = len(tokens), self.config.times
        numbers = torch.Generator().manual_seed(0)
        total = torch.zeros(count, device=tokens.device)
        for look in range(LOOKS):
            t = (torch.arange(count, device=tokens.device) + look * times // LOOKS) % times + 1
            uniform = torch.rand(tokens.shape, generator=numbers).to(tokens.device)
            total += self.terms(tokens, t, uniform)[0]
        return total / LOOKS / math.log(2)

    def drawn(self, uniform: Tensor, temperature: float) -> Tensor:
        count, device = len(uniform), uniform.device
        everywhere = torch.zeros(uniform[:, 0].shape, dtype=torch.int64, device=device)
        last = torch.full((count,), self.config.times, device=device)
        tokens = self.diffusion.noised(everywhere, last, uniform[:, 0])
        for time in range(self.config.times, 0, -1):
            t = torch.full((count,), time, device=device)
            believed = (self.logits(tokens, t) / temperature).softmax(-1)
            tokens = chosen(self.diffusion.backward(believed, tokens, t), uniform[:, time])
        return tokens


SMALL = Config(depth=3, width=96)


def build(config: Config, tokenizer: Tokenizer) -> MaskedDiffusion:
    """An untrained prior."""
    return MaskedDiffusion(config, tokenizer)
