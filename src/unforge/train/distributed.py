"""Devices, threads and processes of a training run. One process unless torchrun set WORLD_SIZE."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from unforge.profiles import Machine


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of the run."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0


@contextmanager
def world(machine: Machine) -> Iterator[World]:
    """Prepare torch for `machine` and, under torchrun, join the process group (nccl on CUDA, else gloo).

    Deterministic algorithms only; on CUDA an operation without one (bilinear upsampling backwards) warns
    instead of failing. Raises ValueError when the device is not there.
    """
    device = prepare(machine)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(device=device, rank=dist.get_rank(), size=size)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def launch(machine: Machine) -> None:
    """Start this program again under torchrun, one process a device, and end with its exit status.

    Returns when there is nothing to launch: one device, or this is already one of torchrun's processes.
    Raises ValueError when the profile asks for more GPUs than there are.
    """
    if "WORLD_SIZE" in os.environ:
        return
    there = torch.cuda.device_count() if torch.device(machine.device).type == "cuda" else None
    count = there or 1 if machine.devices is None else machine.devices
    if there is not None and count > max(1, there):
        raise ValueError(f"the profile asks for {count} devices, but torch {torch.__version__} sees {there}")
    if count > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        os.execv(sys.executable, [*torchrun, *sys.argv])  # noqa: S606


def prepare(machine: Machine) -> torch.device:
    """Set threads and determinism of this process and return its device."""
    device = torch.device(machine.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"the profile asks for device {machine.device!r}, but torch {torch.__version__} sees no GPU")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(machine.threads)
    # use_deterministic_algorithms would do the same after a second of importing the compiler
    torch.set_deterministic_debug_mode("warn" if device.type == "cuda" else "error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    return device


def gather(values: list[Any], world: World) -> list[Any]:
    """All processes' lists joined in the order of ranks, on every process."""
    if world.size == 1:
        return values
    parts: list[list[Any]] = [[] for _ in range(world.size)]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]
