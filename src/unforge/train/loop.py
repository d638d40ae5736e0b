"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from unforge import seeds
from unforge.train import checkpoint, optimiser
from unforge.train.distributed import World
from unforge.types import Losses, Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOG_POINTS = 200


class OnHost(Protocol):
    """A batch as loaded: small to send between processes."""

    def batch(self, device: torch.device) -> Any:
        """What the model's `loss` takes, on the device."""
        ...


class Data(Protocol):
    """Samples of a run. Sample i of step t depends on (seed, t, i) only."""

    def load(self, step: int, first: int, count: int) -> OnHost:
        """Samples first .. first + count - 1 of a step."""
        ...


Validate = Callable[[nn.Module, World], tuple[str, float]]
"""Name and value of what selects the checkpoint; higher is better. Called with the model in eval mode and
without gradients, on every process, and gives every process the same value."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a run gives beside the weights."""

    log: list[tuple[int, str, float]]
    """(step, name, value): means of the loss terms since the last point, learning rate, validation."""
    step: int
    """Step after which the chosen weights were taken."""
    resumed: int
    """Step at which this process began: 0 unless it continued a killed run."""


def fit(
    model: nn.Module,
    data: Data,
    validate: Validate | None,
    recipe: Recipe,
    *,
    world: World,
    steps: int,
    batch: int,
    seed: int,
    validate_every: int,
    checkpoint_every: int,
    resume: Path,
    workers: int = 0,
    name: str = "",
) -> Fitted:
    """Train `model` in place for `steps` optimiser steps and leave the chosen weights in it, in eval mode.

    One step takes `batch * recipe.accumulate` samples, over all processes. The weights (their moving
    average when the recipe asks for one) are validated every `validate_every` steps and after the last;
    the best are chosen, of equals the latest (so a model that never improves keeps its last). Without
    `validate` the last are taken. State goes to `resume` every `checkpoint_every` steps, and a run that
    finds some there continues from it; the caller removes it once the results are safe. On the CPU the
    weights of a continued run equal those of an uninterrupted one bit for bit: the only random state is
    torch's, and it is set at each step from (seed, step, rank).

    Raises ValueError if the batch does not divide by the number of processes, FloatingPointError if
    the loss stops being finite.
    """
    if batch % world.size:
        raise ValueError(f"batch {batch} does not divide by {world.size} processes")
    if world.size > 1 and world.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(world.device).train()
    if steps == 0:
        model.eval()
        return Fitted(log=[], step=0, resumed=0)

    optimise = optimiser.build(recipe, model.parameter_groups(recipe.weight_decay))
    average = optimiser.Average(model, recipe.ema) if recipe.ema else None
    scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.dtype == "float16")
    run = _Run()
    saved = checkpoint.load(resume)
    if saved:
        model.load_state_dict(saved["model"])
        optimise.load_state_dict(saved["optimiser"])
        scaler.load_state_dict(saved["scaler"])
        if average:
            average.load_state_dict(saved["average"])
        run = _Run(**saved["run"])
        if world.first:
            print(f"{name}: continues from step {run.step} of {steps}", flush=True)
    resumed = run.step
    trainable = [p for group in optimise.param_groups for p in group["params"]]
    loss = _wrapped(model, world)
    warmup = optimiser.warmup_steps(recipe, steps)
    log_every = max(1, steps // LOG_POINTS)
    autocast = torch.autocast(world.device.type, DTYPES[recipe.dtype], enabled=recipe.dtype != "float32")

    batches = _batches(data, run.step, steps, batch, recipe.accumulate, world, workers)
    bar = tqdm(total=steps, initial=run.step, desc=name, disable=None if world.first else True)
    for step in range(run.step, steps):
        rate = optimiser.learning_rate(step, steps, warmup, recipe.lr, recipe.min_lr)
        optimiser.set_learning_rate(optimise, rate)
        torch.manual_seed(seeds.integer(seed, f"{step}/{world.rank}", "step"))
        for part in range(recipe.accumulate):
            last = part == recipe.accumulate - 1
            with _silent(loss, last):
                with autocast:
                    total, terms = loss(next(batches).batch(world.device))
                scaler.scale(total / recipe.accumulate).backward()
            run.add({**terms, "total": total}, recipe.accumulate)
        if recipe.clip is not None:
            scaler.unscale_(optimise)
            run.add({"gradient_norm": nn.utils.clip_grad_norm_(trainable, recipe.clip)}, 1)
        optimiser.step(optimise, scaler)
        optimise.zero_grad(set_to_none=True)
        if average:
            average.update(step)
        run.step = step + 1
        bar.update()

        if run.step % log_every == 0 or run.step == steps:
            run.point(rate, world)
        if validate and (run.step % validate_every == 0 or run.step == steps):
            with average.applied() if average else nullcontext():
                model.eval()
                with torch.no_grad(), autocast:
                    metric, value = validate(model, world)
                model.train()
                run.validated(metric, value, model)
            bar.set_postfix({metric: f"{value:.3f}"})
        if world.first and run.step % checkpoint_every == 0 and run.step < steps:
            state = {"model": model.state_dict(), "optimiser": optimise.state_dict(), "scaler": scaler.state_dict()}
            state["average"] = average.state_dict() if average else {}
            checkpoint.save(resume, {**state, "run": vars(run)})
    bar.close()

    if validate:
        model.load_state_dict(run.best_weights)
    elif average:
        model.load_state_dict(average.state_dict(), strict=False)
    model.eval()
    return Fitted(log=[(int(s), n, float(v)) for s, n, v in run.log], step=run.best_step or steps, resumed=resumed)


class _Run:
    """What a run knows beside the state of torch's objects; all of it is saved."""

    def __init__(self, **saved: Any) -> None:
        self.step: int = 0
        self.log: list[tuple[int, str, float]] = []
        self.sums: dict[str, Tensor] = {}
        self.logged: int = 0
        self.best_value: float = -math.inf
        self.best_step: int = 0
        self.best_weights: dict[str, Tensor] = {}
        vars(self).update(saved)

    def add(self, terms: Mapping[str, Tensor], parts: int) -> None:
        """Add to the sums of the current log point; nothing is brought to the host."""
        for name, value in terms.items():
            value = value.detach() / parts
            self.sums[name] = self.sums[name] + value.to(self.sums[name].device) if name in self.sums else value

    def point(self, rate: float, world: World) -> None:
        """Close a log point: means over its steps and over the processes."""
        since = self.logged
        names = sorted(self.sums)
        values = torch.stack([self.sums[n].double().to(world.device) for n in names]) / (self.step - since)
        if world.size > 1:
            dist.all_reduce(values)
            values /= world.size
        means = dict(zip(names, values.tolist(), strict=True))
        if not math.isfinite(means["total"]):
            raise FloatingPointError(f"the loss is not finite between steps {since} and {self.step}: {means}")
        self.log += [(self.step, "learning_rate", rate), *((self.step, n, v) for n, v in means.items())]
        self.sums, self.logged = {}, self.step

    def validated(self, metric: str, value: float, model: nn.Module) -> None:
        self.log.append((self.step, f"validation/{metric}", value))
        if value >= self.best_value or not self.best_weights:
            self.best_value, self.best_step = value, self.step
            self.best_weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}


class _Loss(nn.Module):
    """`model.loss` as a forward pass, which is what DistributedDataParallel averages the gradients of."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        losses: Losses = self.model.loss(batch)
        return losses.total, {name: value.detach() for name, value in losses.terms.items()}


def _wrapped(model: nn.Module, world: World) -> nn.Module:
    """Unused parameters are looked for at each step: released networks hold some (SparseViT's `pos_embed`),
    and a method may use a part of itself only at times."""
    loss = _Loss(model)
    return DistributedDataParallel(loss, find_unused_parameters=True) if world.size > 1 else loss


def _silent(loss: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Gradients travel between processes once per step, with the last part."""
    return nullcontext() if last or not isinstance(loss, DistributedDataParallel) else loss.no_sync()


class _Parts(torch.utils.data.Dataset[OnHost]):
    """This process's share of every batch, by position in the run."""

    def __init__(self, data: Data, batch: int, accumulate: int, world: World) -> None:
        self.data, self.accumulate = data, accumulate
        self.batch, self.share, self.rank = batch, batch // world.size, world.rank

    def __getitem__(self, position: int) -> OnHost:
        step, part = divmod(position, self.accumulate)
        return self.data.load(step, part * self.batch + self.rank * self.share, self.share)


def _batches(
    data: Data, start: int, steps: int, batch: int, accumulate: int, world: World, workers: int
) -> Iterator[OnHost]:
    parts = _Parts(data, batch, accumulate, world)
    positions = range(start * accumulate, steps * accumulate)
    if workers == 0:
        return (parts[position] for position in positions)
    return iter(
        torch.utils.data.DataLoader(
            parts, batch_size=None, sampler=positions, num_workers=workers, multiprocessing_context="fork"
        )
    )
