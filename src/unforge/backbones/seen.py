"""What small vision towers see: frozen tokens of the forensic backbone. Shared by backbones; not one itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unforge import backbones, paths
from unforge.backbones import forensic

ROOM = 2**27
"""Bytes of tokens that a model keeps, of images that come again."""


def tokens(traces: forensic.Forensic, memory: forensic.Memory, image: Tensor, side: int) -> Tensor:
    """(B,C,side,side): frozen tokens of `image` (B,3,H,W), each image seen by itself."""

    def looked(one: Tensor) -> tuple[Tensor, ...]:
        return (traces.tokens(one, side),)

    # what inference mode makes could not be learnt from later
    found = looked(image) if torch.is_inference_mode_enabled() or image.is_meta else memory(image, looked)
    return found[0].transpose(1, 2).unflatten(2, (side, side))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters of `module`, without decay for biases, norms and embeddings."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in embeddings]
    free = [p for p in trained if p.ndim <= 1 or id(p) in embeddings]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def forensic_of(assets: Mapping[str, Path]) -> forensic.Forensic:
    """The trained forensic backbone of the asset `forensic`; else an untrained one, of the sizes in the asset `run` or
    the small ones (its weights come with the state dict of whatever holds it)."""
    if "forensic" in assets:
        loaded = backbones.load(assets["forensic"])
        if not isinstance(loaded, forensic.Forensic):
            raise ValueError(f"{assets['forensic']} is no forensic backbone")
        return loaded
    saved = assets["run"] / "forensic.json" if "run" in assets else None
    if saved is not None and saved.is_file():
        return forensic.build(backbones.restore(forensic.Config, paths.read_json(saved)), {})
    return forensic.build(forensic.SMALL, {})


def keep(directory: Path, name: str, config: Any, sizes: Any, traces: forensic.Forensic | None) -> None:
    """Write `<name>.json` with the configuration and transformers' `sizes`, and `forensic.json` if there is one."""
    directory.mkdir(parents=True, exist_ok=True)
    architecture = _without_versions(sizes.to_dict())
    paths.write_json(directory / f"{name}.json", {"config": dataclasses.asdict(config), "architecture": architecture})
    if traces is not None:
        paths.write_json(directory / "forensic.json", dataclasses.asdict(traces.config))


def architecture(assets: Mapping[str, Path], name: str) -> dict[str, Any] | None:
    """transformers' sizes as `keep` wrote them into the asset `run`; None without one."""
    if "run" not in assets:
        return None
    return dict(paths.read_json(assets["run"] / f"{name}.json")["architecture"])


def config(kind: Any, assets: Mapping[str, Path], name: str) -> Any:
    """The configuration, a `kind`, as `keep` wrote it into the asset `run`."""
    return backbones.restore(kind, paths.read_json(assets["run"] / f"{name}.json")["config"])


def opened(directory: Path, name: str, config: Any) -> Any:
    """Backbone `name` from `directory`: one trained here, or an official checkpoint, read with `config`.

    FileNotFoundError if there is none.
    """
    described = directory / "config.json"
    if described.is_file() and "backbone" not in paths.read_json(described):
        return backbones.load_module(name).build(config, {"checkpoint": directory})
    return backbones.load(directory)


def _without_versions(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_versions(value) for key, value in values.items() if key != "transformers_version"}
    return values
