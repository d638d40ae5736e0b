"""The training loop for models that do not fit one device: PyTorch's FSDP2 in the place of DistributedDataParallel.

A method asks for it by `self.fit = sharded.fit`, and names the modules that are gathered one at a time:
`shard_units()`, as modules or as their dotted names (the layers of its networks). What is in none of them is one
more unit. Each process holds its share of the parameters, gradients and optimiser state in float32; a unit is
gathered in the recipe's type when it runs. Gradient checkpointing is the model's affair.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from unforge import seeds
from unforge.train import loop, optimiser
from unforge.train.distributed import World
from unforge.types import Recipe

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Types a unit is gathered in and computes in. float16 would need a scaler that knows of shards."""


def fit(
    model: nn.Module,
    data: loop.Data,
    validate: loop.Validate | None,
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
) -> loop.Fitted:
    """As `loop.fit`, with the model sharded over the processes; one process runs `loop.fit` itself.

    Every process gives the same start. Gradients are averaged over the processes and kept sharded, also between the
    parts of an accumulated step. Validation sees the whole weights on every process. In the end the first process
    holds the model as it was given, whole, on the CPU, with the chosen weights, in eval mode; the other processes'
    models hold nothing. State lies in `resume`, a folder a checkpoint, in torch's distributed format: a run goes on
    with as many processes as it began with.

    Raises ValueError if the batch does not divide by the number of processes, if the recipe's type is float16, or if
    the model has no `shard_units`; FloatingPointError if the loss stops being finite.
    """
    if recipe.dtype not in TYPES:
        raise ValueError(f"dtype {recipe.dtype!r} of a sharded model: accepted are {sorted(TYPES)}")
    if not hasattr(model, "shard_units"):
        raise ValueError(f"{type(model).__name__} has no shard_units(): the modules that are gathered one at a time")
    if world.size == 1 or steps == 0:
        return loop.fit(
            model, data, validate, recipe, world=world, steps=steps, batch=batch, seed=seed,
            validate_every=validate_every, checkpoint_every=checkpoint_every, resume=resume, workers=workers, name=name,
        )  # fmt: skip
    if batch % world.size:
        raise ValueError(f"batch {batch} does not divide by {world.size} processes")

    model.train()
    sharded = Sharded(model, world, TYPES[recipe.dtype])
    optimise = optimiser.build(recipe, model.parameter_groups(recipe.weight_decay))
    average = optimiser.Average(model, recipe.ema) if recipe.ema else None
    state = _State(model, optimise, average, world)
    run = state.load(resume)
    if run.step and world.first:
        print(f"{name}: continues from step {run.step} of {steps}", flush=True)
    resumed = run.step
    trainable = [p for group in optimise.param_groups for p in group["params"]]
    scaler = torch.amp.GradScaler(world.device.type, enabled=False)
    warmup = optimiser.warmup_steps(recipe, steps)
    log_every = max(1, steps // loop.LOG_POINTS)
    autocast = torch.autocast(world.device.type, TYPES[recipe.dtype], enabled=recipe.dtype != "float32")

    batches = loop._batches(data, run.step, steps, batch, recipe.accumulate, world, workers)
    bar = tqdm(total=steps, initial=run.step, desc=name, disable=None if world.first else True)
    for step in range(run.step, steps):
        rate = optimiser.learning_rate(step, steps, warmup, recipe.lr, recipe.min_lr)
        optimiser.set_learning_rate(optimise, rate)
        torch.manual_seed(seeds.integer(seed, f"{step}/{world.rank}", "step"))
        for _ in range(recipe.accumulate):
            with autocast:
                total, terms = sharded.loss(next(batches).batch(world.device))
            (total / recipe.accumulate).backward()
            run.add({**terms, "total": total}, recipe.accumulate)
        if recipe.clip is not None:
            run.add({"gradient_norm": _whole(nn.utils.clip_grad_norm_(trainable, recipe.clip))}, 1)
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
                with torch.no_grad(), autocast, sharded.gathered():
                    metric, value = validate(model, world)
                model.train()
                run.validated(metric, value, model)
            bar.set_postfix({metric: f"{value:.3f}"})
        if run.step % checkpoint_every == 0 and run.step < steps:
            state.save(resume, run)
    bar.close()

    if validate:
        model.load_state_dict(run.best_weights)
    elif average:
        model.load_state_dict(average.state_dict(), strict=False)
    sharded.undo()
    model.eval()
    return loop.Fitted(log=[(int(s), n, float(v)) for s, n, v in run.log], step=run.best_step or steps, resumed=resumed)


class Sharded:
    """A model whose parameters are sharded over the processes until `undo`."""

    def __init__(self, model: nn.Module, world: World, dtype: torch.dtype) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        self.model, self.world = model, world
        self.given = [(module, type(module), _hooks(module)) for module in model.modules()]
        mesh = init_device_mesh(world.device.type, (world.size,))
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        units: list[Any] = model.shard_units()
        for unit in units:
            fully_shard(model.get_submodule(unit) if isinstance(unit, str) else unit, mesh=mesh, mp_policy=policy)
        self.loss = loop._Loss(model)
        """The root: its forward pass is the model's loss."""
        # images stay in float32 up to the first operation that autocast covers: a batch in bfloat16 has lost traces
        fully_shard(self.loss, mesh=mesh, mp_policy=replace(policy, cast_forward_inputs=False))
        self.units: list[Any] = [module for module in self.loss.modules() if isinstance(module, FSDPModule)]

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside the block every process holds all parameters whole: processes may call the model differently often."""
        for unit in self.units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in self.units:
                unit.reshard()
                unit.set_reshard_after_forward(unit is not self.loss, recurse=False)

    @torch.no_grad()
    def undo(self) -> None:
        """The model as it was given: on the first process with its weights, on the CPU; on others on `meta`."""
        for unit in self.units:
            unit.reshard()
        # by identity, the sharded one kept beside the whole: tied weights stay tied
        done: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
        for module, kind, hooks in self.given:
            for name, parameter in list(module._parameters.items()):
                if parameter is None:
                    continue
                if id(parameter) not in done:
                    whole = _whole(parameter.detach()).to("cpu" if self.world.first else "meta")
                    done[id(parameter)] = (parameter, nn.Parameter(whole, requires_grad=parameter.requires_grad))
                module._parameters[name] = done[id(parameter)][1]
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.cpu()
            module.__class__ = kind
            _restore(module, hooks)


class _Run(loop._Run):
    """What a run knows; the chosen weights stay sharded and where they are."""

    def validated(self, metric: str, value: float, model: nn.Module) -> None:
        self.log.append((self.step, f"validation/{metric}", value))
        if value >= self.best_value or not self.best_weights:
            self.best_value, self.best_step = value, self.step
            self.best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}


@dataclass(frozen=True)
class _State:
    """What a checkpoint holds: each process writes its own shards, and what it alone knows."""

    model: nn.Module
    optimise: torch.optim.Optimizer
    average: optimiser.Average | None
    world: World

    def tensors(self, best: Mapping[str, Tensor]) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        found: dict[str, Any] = {"model": self.model.state_dict()}
        found["optimiser"] = get_optimizer_state_dict(self.model, self.optimise)
        if self.average:
            found["average"] = self.average.state_dict()
        return {**found, "best": dict(best)} if best else found

    def save(self, where: Path, run: _Run) -> None:
        """Write a folder and give it its name once it is whole; then drop the one before."""
        from torch.distributed.checkpoint.state_dict_saver import save as write

        temporary, final = where / ".writing", where / f"step{run.step:09d}"
        if self.world.first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        dist.barrier()
        own = {key: value for key, value in vars(run).items() if key != "best_weights"}
        torch.save({**own, "chosen": bool(run.best_weights)}, temporary / f"rank{self.world.rank}.pt")
        write(self.tensors(run.best_weights), checkpoint_id=temporary)
        dist.barrier()
        if self.world.first:
            before = _steps(where)
            os.replace(temporary, final)
            for folder in before:
                shutil.rmtree(folder)

    def load(self, where: Path) -> _Run:
        """The newest checkpoint, put in place; a fresh run if there is none."""
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict
        from torch.distributed.checkpoint.state_dict_loader import load as read

        found = _steps(where)
        if not found:
            return _Run()
        saved = torch.load(found[-1] / f"rank{self.world.rank}.pt", map_location="cpu", weights_only=True)
        chosen = saved.pop("chosen")
        best = {k: v.detach().clone() for k, v in self.model.state_dict().items()} if chosen else {}
        tensors = self.tensors(best)
        read(tensors, checkpoint_id=found[-1])
        self.model.load_state_dict(tensors["model"])
        set_optimizer_state_dict(self.model, self.optimise, tensors["optimiser"])
        if self.average:
            self.average.load_state_dict(tensors["average"])
        dist.barrier()
        return _Run(**saved, best_weights=tensors.get("best", {}))


def _steps(where: Path) -> list[Path]:
    """Folders of whole checkpoints, oldest first."""
    return sorted(where.glob("step*"))


def _whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered, on every process; any other as it is."""
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""Where sharding leaves hooks in a module."""


def _hooks(module: nn.Module) -> dict[str, set[int]]:
    return {name: set(getattr(module, name)) for name in HOOKS}


def _restore(module: nn.Module, hooks: Mapping[str, set[int]]) -> None:
    """Drop the hooks that came after `_hooks`."""
    for name, kept in hooks.items():
        present = getattr(module, name)
        for key in set(present) - kept:
            del present[key]
