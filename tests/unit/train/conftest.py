from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.train import fakes
from unforge.profiles import Machine
from unforge.train import distributed, loop
from unforge.train.distributed import World


@pytest.fixture
def world() -> Iterator[World]:
    with distributed.world(Machine(device="cpu", dtype="float32", threads=1, workers=0)) as here:
        yield here
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def fit(world: World, tmp_path: Path) -> Callable[..., loop.Fitted]:
    """`loop.fit` of a model on the fake samples, with short defaults; every call has a resume folder of its own."""
    calls = iter(range(1000))

    def run(model: torch.nn.Module, **changes: Any) -> loop.Fitted:
        options: dict[str, Any] = {
            "data": fakes.samples(), "validate": None, "recipe": fakes.RECIPE, "world": world, "steps": 10, "batch": 4,
            "seed": 0, "validate_every": 5, "checkpoint_every": 4, "resume": tmp_path / "resume" / f"run{next(calls)}",
        }  # fmt: skip
        options |= changes
        return loop.fit(model, options.pop("data"), options.pop("validate"), options.pop("recipe"), **options)

    return run
