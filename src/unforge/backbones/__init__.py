"""Networks that methods and forgeries build on, one per module: `Config`, `SMALL` and `build(config, assets)`.

A module may name the set it is pretrained on, `TRAINED_ON` (else the photographs of the pool), and the backbones it
is built on, `NEEDS`: assets by their name. The asset `checkpoint` is a folder of released weights.
A trained backbone is a directory with `model.safetensors`, `config.json` and what its `save_files` adds.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unforge import paths
from unforge.types import Recipe

if TYPE_CHECKING:
    from torch import nn


SHARED = frozenset({"describe", "seen", "segment", "tiles", "words"})
"""Modules that are no backbone."""


def names() -> list[str]:
    """Every backbone."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SHARED)


def load_module(name: str) -> ModuleType:
    """The module of a backbone. ValueError when there is none."""
    if name not in names():
        raise ValueError(f"no backbone {name!r}: there is {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def save(backbone: nn.Module, name: str, config: Any, directory: Path) -> None:
    """Write `model.safetensors`, `config.json` (its `Config`) and what its `save_files` adds into `directory`, which
    exists."""
    from safetensors.torch import save_file

    state = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    save_file(state, directory / "model.safetensors")
    paths.write_json(directory / "config.json", {"backbone": name, "config": dataclasses.asdict(config)})
    if hasattr(backbone, "save_files"):
        backbone.save_files(directory)


def load(directory: Path, assets: Mapping[str, Path] | None = None) -> nn.Module:
    """The backbone written to `directory`, in eval mode; it finds what it saved there as the asset `run`.

    FileNotFoundError says how to make it.
    """
    from safetensors.torch import load_file

    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory} is not there: `dvc repro` makes it, `dvc pull {directory}` fetches it")
    saved = paths.read_json(directory / "config.json")
    module = load_module(saved["backbone"])
    config = restore(module.Config, saved["config"])
    backbone: nn.Module = module.build(config, {"run": directory, **(assets or {})})
    backbone.load_state_dict(load_file(directory / "model.safetensors"))
    return backbone.eval()


def restore(kind: Any, values: Mapping[str, Any]) -> Any:
    """A config dataclass from JSON: lists become tuples again, the recipe a `Recipe`."""
    restored = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if isinstance(restored.get("recipe"), dict):
        restored["recipe"] = restore(Recipe, restored["recipe"])
    return kind(**restored)
