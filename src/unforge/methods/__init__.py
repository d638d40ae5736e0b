"""Methods by name. A module here defines `Config`, `SMALL`, `VARIANTS` and `build(config, assets)`.

Nothing imports a method statically; its name is its registration. A module may also have `PARTS` and `TRAINABLE` (see
`unforge.counts`).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from unforge import paths

Scale = Literal["small", "paper"]


def names() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load_module(name: str) -> types.ModuleType:
    """The module of method `name`. ValueError with near names if there is none."""
    _known(name, names(), "method")
    return importlib.import_module(f"{__name__}.{name}")


def config(name: str, variant: str = "", scale: Scale = "paper") -> Any:
    """The configuration of a variant: at paper scale `VARIANTS[variant]`; at small scale `SMALL` with exactly the
    fields replaced in which `VARIANTS[variant]` differs from `Config()`."""
    module = load_module(name)
    _known(variant, list(module.VARIANTS), f"variant of {name}")
    chosen = module.VARIANTS[variant]
    if scale == "paper":
        return chosen
    if scale != "small":
        raise ValueError(f"scale {scale!r} is neither 'small' nor 'paper'")
    default = module.Config()
    changes = {
        field.name: getattr(chosen, field.name)
        for field in dataclasses.fields(chosen)
        if getattr(chosen, field.name) != getattr(default, field.name)
    }
    return dataclasses.replace(module.SMALL, **changes)


def build(name: str, config: Any, assets: Mapping[str, Path] | None = None) -> Any:
    """The method `name` for `config`, freshly started."""
    return load_module(name).build(config, assets or {})


def save(method: Any, name: str, variant: str, config: Any, run_dir: Path) -> None:
    """Write `model.safetensors` and `config.json` into `run_dir`, which must exist, and what the method's
    `save_files` adds (a tokenizer's files). Equal weights, equal bytes."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in method.state_dict().items()}
    save_file(tensors, run_dir / "model.safetensors")
    entry = {"method": name, "variant": variant, "scale": _scale(name, variant, config)}
    paths.write_json(run_dir / "config.json", entry | {"config": dataclasses.asdict(config)})
    if hasattr(method, "save_files"):
        method.save_files(run_dir)


def load(run_dir: Path, assets: Mapping[str, Path] | None = None) -> Any:
    """The method saved in `run_dir`, in eval mode; it finds what it saved there as the asset `run`.

    FileNotFoundError if nothing was saved there.
    """
    from safetensors.torch import load_file

    method = restore(paths.read_json(run_dir / "config.json"), {"run": run_dir, **(assets or {})})
    method.load_state_dict(load_file(run_dir / "model.safetensors"))
    return method.eval()


def restore(entry: Mapping[str, Any], assets: Mapping[str, Path] | None = None) -> Any:
    """The method that a `config.json` names, freshly started."""
    module = load_module(entry["method"])
    return module.build(_parsed(module.Config, entry["config"]), assets or {})


def _known(name: str, known: list[str], what: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"near: {', '.join(near)}" if near else f"there are: {', '.join(repr(k) for k in sorted(known))}"
        raise ValueError(f"no {what} {name!r} ({hint})")


def _scale(name: str, variant: str, settings: Any) -> str:
    """`small` or `paper` if `settings` is that scale's, else `custom`."""
    scales: tuple[Scale, ...] = ("small", "paper")
    return next((scale for scale in scales if settings == config(name, variant, scale)), "custom")


def _parsed(kind: Any, value: Any) -> Any:
    """`value`, as JSON gives it, as the type of a dataclass field. ValueError for an unknown field."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise ValueError(f"{kind.__module__}.{kind.__qualname__} has no field {unknown}: saved by another version?")
        return kind(**{key: _parsed(hints[key], item) for key, item in value.items()})
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        arguments = typing.get_args(kind)
        inner = arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else None
        return tuple(_parsed(inner or arguments[i], item) for i, item in enumerate(value))
    if typing.get_origin(kind) in (typing.Union, types.UnionType) and isinstance(value, (list, dict)):
        return next(
            _parsed(k, value)
            for k in typing.get_args(kind)
            if dataclasses.is_dataclass(k) or typing.get_origin(k) is tuple
        )
    return value
