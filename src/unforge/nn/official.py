"""State dicts of other people's releases: reading them and filling a module with them by key names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, of an official pickle (read with `weights_only`), or of
    `model.safetensors` in a directory."""
    path = path / "model.safetensors" if path.is_dir() else path
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return tensors(torch.load(path, map_location="cpu", weights_only=True))


def tensors(checkpoint: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a checkpoint: under `model` or `state_dict`, or itself; names without `module.`."""
    for key in ("model", "state_dict"):
        inner = checkpoint.get(key)
        if isinstance(inner, Mapping):
            checkpoint = inner
    return {name.removeprefix("module."): value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def fill(
    module: nn.Module, checkpoint: Mapping[str, object], what: str, *, without: Collection[str] = ()
) -> tuple[str, ...]:
    """Load a checkpoint into `module`, whose every key it must have, in the same shape.

    Keys that begin with one of `without` may be left over, and are returned; any other is an error. ValueError
    names what is missing, left over or of another shape; nothing is loaded then.
    """
    given, own = tensors(checkpoint), module.state_dict()
    left = tuple(sorted(set(given) - set(own)))
    problems = {
        "missing": sorted(set(own) - set(given)),
        "another shape": [
            f"{name} {tuple(given[name].shape)} for {tuple(own[name].shape)}"
            for name in sorted(set(given) & set(own))
            if given[name].shape != own[name].shape
        ],
        "unexpected": [name for name in left if not name.startswith(tuple(without))],
    }
    found = [
        f"{problem}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for problem, names in problems.items()
        if names
    ]
    if found:
        raise ValueError(f"not a state dict of {what} for this configuration; {'; '.join(found)}")
    module.load_state_dict({name: given[name] for name in own})
    return left
