"""State dicts of the official releases: SparseViT itself and the UniFormer it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a state dict gave and what it did not."""

    kind: str
    """`sparsevit` (the whole network) or `uniformer` (the backbone, without a head)."""
    missing: tuple[str, ...]
    """Keys of the method that keep their start."""
    unexpected: tuple[str, ...]
    """Keys of the state dict that the method has no place for."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or an official pickle (read with `weights_only`)."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return unwrap(torch.load(path, map_location="cpu", weights_only=True))


def unwrap(checkpoint: Mapping[str, object]) -> dict[str, Tensor]:
    """The state dict of a checkpoint: under `model` or `state_dict`, or itself; without `module.` and `backbone.`."""
    for key in ("model", "state_dict"):
        inner = checkpoint.get(key)
        if isinstance(inner, Mapping):
            checkpoint = inner
    tensors = {}
    for name, value in checkpoint.items():
        if isinstance(value, Tensor):
            tensors[name.removeprefix("module.").removeprefix("backbone.")] = value
    return tensors


def load_official(method: nn.Module, state_dict: Mapping[str, object]) -> Loaded:
    """Load an official state dict into `method` by its key names.

    A SparseViT state dict (keys `encoder_net.*`, `lmu.*`) must fit completely. A UniFormer one (keys `blocks1.*`
    and so on, without prefix) fills the backbone: it has no depthwise convolution in the MLPs, no norms of the
    stages and no head, those keep their start; its classifier and final norm are left over. The ImageNet
    checkpoint without layer scale lacks `gamma_1` and `gamma_2` as well (they then stay at 1e-6).

    ValueError for any other state dict, naming what is missing or of another shape; nothing is loaded then.
    """
    given = unwrap(state_dict)
    own = method.state_dict()
    kind = "sparsevit" if any(name.startswith(("encoder_net.", "lmu.")) for name in given) else "uniformer"
    if kind == "uniformer":
        given = {f"encoder_net.{name}": value for name, value in given.items()}
        required = {name for name in own if name.startswith("encoder_net.") and not _optional(name)}
    else:
        required = set(own)
    needed = sorted(required - set(given))
    shapes = [
        f"{name} {tuple(given[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(set(given) & set(own))
        if given[name].shape != own[name].shape
    ]
    unexpected = tuple(sorted(set(given) - set(own)))
    if needed or shapes or (kind == "sparsevit" and unexpected):
        parts = [
            f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
            for what, names in (("missing", needed), ("another shape", shapes), ("unexpected", list(unexpected)))
            if names
        ]
        raise ValueError(f"not an official {kind} state dict for this configuration; {'; '.join(parts)}")
    method.load_state_dict({name: given[name] for name in own if name in given}, strict=False)
    strip = len("encoder_net.") if kind == "uniformer" else 0
    return Loaded(
        kind=kind,
        missing=tuple(sorted(set(own) - set(given))),
        unexpected=tuple(name[strip:] for name in unexpected),
    )


def _optional(name: str) -> bool:
    """Whether a UniFormer checkpoint may lack this key of the backbone."""
    stage_norm = name.split(".")[1] in {"norm1", "norm2", "norm3", "norm4"}
    return stage_norm or ".mlp.dwconv." in name or name.endswith((".gamma_1", ".gamma_2"))
