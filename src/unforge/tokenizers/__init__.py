"""Image tokenizers by name: `Config`, `SMALL`, `build(config)`, `OFFICIAL` (released weights) and `RECIPE` (of the
inverse decoder).

A trained tokenizer is a directory with `model.safetensors` and `config.json`.
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
    from unforge.tokenizers.base import Tokenizer

SHARED = frozenset({"base", "codec", "multiscale", "official", "quantizers"})
"""Modules that are no family."""


def names() -> list[str]:
    """Every family, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SHARED)


def load_module(name: str) -> ModuleType:
    """The module of a family. ValueError when there is none."""
    if name not in names():
        raise ValueError(f"no tokenizer {name!r}: there is {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def build(name: str, config: Any) -> Tokenizer:
    """An untrained tokenizer of a family, for its `Config`."""
    tokenizer: Tokenizer = load_module(name).build(config)
    return tokenizer


def save(tokenizer: Tokenizer, name: str, directory: Path) -> None:
    """Write `model.safetensors` and `config.json` into `directory`, which exists. Equal weights, equal bytes."""
    from safetensors.torch import save_file

    state = {key: value.detach().cpu().contiguous() for key, value in tokenizer.state_dict().items()}
    save_file(state, directory / "model.safetensors")
    entry = {"tokenizer": name, "config": dataclasses.asdict(tokenizer.config)}
    paths.write_json(directory / "config.json", entry)


def load(directory: Path) -> Tokenizer:
    """The tokenizer written to `directory`, in eval mode. FileNotFoundError says how to make it."""
    from safetensors.torch import load_file

    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory} is not there: `dvc repro` makes it, `dvc pull {directory}` fetches it")
    saved = paths.read_json(directory / "config.json")
    tokenizer = build(saved["tokenizer"], _restored(load_module(saved["tokenizer"]).Config, saved["config"]))
    tokenizer.load_state_dict(load_file(directory / "model.safetensors"))
    return tokenizer.eval()


def load_official(
    name: str,
    file: Path,
    sha256: str,
    *,
    extras: Mapping[str, tuple[Path, str]] | None = None,
    config: Any = None,
) -> Tokenizer:
    """A family's tokenizer with the weights of a released file, in eval mode; `config`: the family's own by default.

    The file must have the hash `sha256` (hex), and so must the further files that the family's `OFFICIAL` names:
    `extras` has (path, hash) for each. ValueError says what is missing, has another shape or is not known;
    FileNotFoundError which file is not there.
    """
    from unforge.tokenizers import official

    module = load_module(name)
    released, given = module.OFFICIAL, dict(extras or {})
    if set(given) != set(released.extras):
        wanted = ", ".join(f"{role} ({released_as})" for role, released_as in released.extras.items()) or "none"
        raise ValueError(f"{name}: further files {sorted(given)}, needed: {wanted}")
    state = official.read(Path(file), sha256, released.entry)
    more = {role: official.read(Path(path), digest) for role, (path, digest) in given.items()}
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} holds a {type(state).__name__}, not the state dict of {released.file}")
    tokenizer = build(name, config or module.Config())
    official.load(tokenizer, released, state)
    if more:
        module.load_extras(tokenizer, more)
    return tokenizer.eval()


def counts(name: str, config: Any = None) -> dict[str, int]:
    """Parameters of a family's networks at the scale of `config` (the paper's by default), on meta tensors: of the
    whole tokenizer under `""`, and of its parts."""
    import torch

    module = load_module(name)
    with torch.device("meta"):
        tokenizer = module.build(config or module.Config())
    sizes = {part: sum(p.numel() for p in child.parameters()) for part, child in tokenizer.named_children()}
    return {"": sum(sizes.values()), **sizes}


def _restored(kind: Any, values: Mapping[str, Any]) -> Any:
    """A config dataclass from JSON: lists become tuples again, the recipe a `Recipe`. ValueError for an unknown
    field."""
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise ValueError(f"{kind.__module__} has no field {unknown}: saved by another version?")
    restored = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if isinstance(restored.get("recipe"), dict):
        restored["recipe"] = _restored(Recipe, restored["recipe"])
    return kind(**restored)
