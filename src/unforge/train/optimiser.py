"""Learning-rate schedule, optimiser and exponential moving average of a `Recipe`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unforge.types import Recipe


def warmup_steps(recipe: Recipe, steps: int) -> int:
    """Warm-up of a run of `steps`: the recipe's share of its epochs, whatever the run's length."""
    return round(steps * recipe.warmup_epochs / recipe.epochs)


def learning_rate(step: int, steps: int, warmup: int, lr: float, min_lr: float) -> float:
    """Learning rate of step `step` (0 .. steps - 1): linear from lr / warmup to lr, then a half cosine towards min_lr.

    Changes at every step. The warm-up begins above 0, so that no step is lost; the cosine would reach
    `min_lr` at step `steps`.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def build(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Adam (weight decay in the gradient) or AdamW (decoupled), in torch's fused form (one call for all tensors)."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if recipe.optimiser not in kinds:
        raise ValueError(f"optimiser {recipe.optimiser!r}: accepted are {sorted(kinds)}")
    return kinds[recipe.optimiser](groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def step(optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """One step of the optimiser, through `scaler` if that is enabled.

    Else without torch's decorators around `step`, which import its compiler: more than a second in every run.
    """
    if scaler.is_enabled():
        scaler.step(optimiser)
        scaler.update()
        return
    with torch.no_grad():
        inspect.unwrap(type(optimiser).step)(optimiser)


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """`value` for every group, times the group's `lr_scale` where it has one."""
    for group in optimiser.param_groups:
        group["lr"] = value * group.get("lr_scale", 1.0)


class Average:
    """Exponential moving average of the trainable parameters.

    average <- d average + (1 - d) parameter, with d = min(decay, (1 + t) / (10 + t)) after step t: a short
    run is not held at its initial weights. Buffers (batch-norm statistics) are averages already and stay
    the model's.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema {decay}: accepted is 0 < ema < 1")
        self.decay = decay
        self.names, self.parameters = zip(
            *((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True
        )
        self.values = [p.detach().clone() for p in self.parameters]

    def update(self, step: int) -> None:
        """Move towards the model's weights after `step` (counted from 0); slow only once training is under way."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the average inside the block, its own weights again after it."""
        own = [p.detach().clone() for p in self.parameters]
        self._assign(self.values)
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.values, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in zip(self.names, self.values, strict=True):
            value.copy_(state[name])
