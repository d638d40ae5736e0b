"""Small generators over the tokens of image tokenizers, by kind: `next_token`, `next_scale`, `masked_diffusion`.

A kind has `Config`, `SMALL` and `build(config, tokenizer)`. A trained prior is a directory with `model.safetensors`
and `config.json`, and belongs to one tokenizer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from unforge import paths
from unforge.types import Recipe

if TYPE_CHECKING:
    from unforge.priors.base import Prior
    from unforge.tokenizers.base import Tokenizer

VERSION = "1"
"""Of what is sampled from the same weights."""

OF: dict[str, str] = {
    "infinity": "next_scale",
    "llamagen": "next_token",
    "rar": "next_token",
    "taming": "next_token",
    "var": "next_scale",
    "vqdiffusion": "masked_diffusion",
}
"""Kind of each tokenizer family's generator."""

OWN: dict[str, dict[str, Any]] = {"infinity": {"flips": 0.3}, "rar": {"random_order": True}}
"""What a family has beyond its kind. Source: Infinity (bits flipped with up to 30 %), RAR."""

OWN_SMALL: dict[str, dict[str, Any]] = {"infinity": {"flips": 0.1}}
"""What a family has otherwise at small scale. ASSUMPTION(paper): few steps learn little from maps that are mostly
flipped."""

SIZES: dict[str, dict[str, Any]] = {
    "infinity": {"depth": 32, "width": 2048, "heads": 16},
    "llamagen": {"depth": 36, "width": 1280, "heads": 20},
    "rar": {"depth": 40, "width": 1408, "heads": 16},
    "taming": {"depth": 48, "width": 1536, "heads": 24},
    "var": {"depth": 30, "width": 1920, "heads": 30},
    "vqdiffusion": {"depth": 24, "width": 512, "heads": 16, "times": 100},
}
"""At the paper's scale. Source: released configurations of Infinity-2B, LlamaGen-XL, RAR-XXL, Taming's cin_transformer,
VAR-d30 and VQ-Diffusion's ImageNet model; only the sizes are theirs."""


def load_module(kind: str) -> ModuleType:
    """The module of a kind. ValueError when there is none."""
    if kind not in OF.values():
        raise ValueError(f"no prior {kind!r}: there is {', '.join(sorted(set(OF.values())))}")
    return importlib.import_module(f"{__name__}.{kind}")


def config(family: str, scale: Literal["small", "paper"]) -> Any:
    """Configuration of a family's prior. ValueError for a family that is none."""
    from unforge.priors.base import PAPER

    if family not in OF:
        raise ValueError(f"no prior for {family!r}: there is one for {', '.join(OF)}")
    module = load_module(OF[family])
    if scale == "small":
        return dataclasses.replace(module.SMALL, **{**OWN.get(family, {}), **OWN_SMALL.get(family, {})})
    return module.Config(**SIZES[family], **OWN.get(family, {}), recipe=PAPER)


def build(family: str, tokenizer: Tokenizer, scale: Literal["small", "paper"]) -> Prior:
    """An untrained prior over the tokens of a family's tokenizer."""
    prior: Prior = load_module(OF[family]).build(config(family, scale), tokenizer)
    return prior


def save(prior: Prior, family: str, tokenizer: Tokenizer, directory: Path) -> None:
    """Write `model.safetensors` and `config.json` into `directory`, which exists. Equal weights, equal bytes."""
    from safetensors.torch import save_file

    state = {key: value.detach().cpu().contiguous() for key, value in prior.state_dict().items()}
    save_file(state, directory / "model.safetensors")
    entry = {"family": family, "config": dataclasses.asdict(prior.config), "tokenizer": fingerprint(tokenizer)}
    paths.write_json(directory / "config.json", entry)


def load(directory: Path, tokenizer: Tokenizer) -> Prior:
    """The prior written to `directory`, in eval mode. ValueError when it learnt the tokens of another tokenizer;
    FileNotFoundError says how to make one that is not there."""
    from safetensors.torch import load_file

    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory} is not there: `dvc repro` makes it, `dvc pull {directory}` fetches it")
    saved = paths.read_json(directory / "config.json")
    if saved["tokenizer"] != fingerprint(tokenizer):
        raise ValueError(f"{directory}: a prior over the tokens of another tokenizer: `dvc repro` makes it again")
    module = load_module(OF[saved["family"]])
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in saved["config"].items()}
    recipe = {key: tuple(value) if isinstance(value, list) else value for key, value in values.pop("recipe").items()}
    prior: Prior = module.build(module.Config(**values, recipe=Recipe(**recipe)), tokenizer)
    prior.load_state_dict(load_file(directory / "model.safetensors"))
    return prior.eval()


def fingerprint(tokenizer: Tokenizer) -> str:
    """Hash of a tokenizer's weights."""
    state = hashlib.sha256()
    for name, value in sorted(tokenizer.state_dict().items()):
        state.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        state.update(value.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()
