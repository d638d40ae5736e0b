"""What the tests of several methods share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unforge import methods
from unforge.types import Batch


def forged(masks: torch.Tensor) -> Batch:
    """Images of noise, all of them forged, with `masks` (B,1,H,W)."""
    generator = torch.Generator().manual_seed(1)
    names = tuple(str(i) for i in range(len(masks)))
    return Batch(
        image=torch.rand(len(masks), 3, *masks.shape[2:], generator=generator),
        mask=masks,
        label=torch.ones(len(masks), dtype=torch.int64),
        key=names,
        unit=names,
        source=tuple((name,) for name in names),
    )


def saved_and_loaded(method: Any, name: str, folder: Path) -> Any:
    """The method as its run gives it again, without any assets; it has the same weights."""
    methods.save(method, name, "", method.config, folder)
    again = methods.load(folder)
    state = method.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items())
    return again
