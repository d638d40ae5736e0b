"""Tokenizers of binary masks, and the losses that train on their tokens.

A trained one is a directory with `model.safetensors` and `config.json`, in a format of unforge's own: HiMTok's
released checkpoint is not read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unforge import paths
from unforge.masks.tokenizer import SMALL, Config, MaskTokenizer
from unforge.types import Recipe

__all__ = ["SMALL", "Config", "MaskTokenizer", "build", "counts", "load", "restored", "save"]


def build(config: Config) -> MaskTokenizer:
    """An untrained tokenizer."""
    return MaskTokenizer(config)


def counts(config: Config | None = None) -> dict[str, int]:
    """Parameters at the scale of `config` (the paper's by default), on meta tensors: of the whole under `""`, and of
    its parts (`decoder` with its `decoder.pixels`)."""
    with torch.device("meta"):
        tokenizer = build(config or Config())
    sizes = {part: sum(p.numel() for p in child.parameters()) for part, child in tokenizer.named_children()}
    whole = sum(sizes.values())
    if hasattr(tokenizer.decoder, "pixels"):
        sizes["decoder.pixels"] = sum(p.numel() for p in tokenizer.decoder.pixels.parameters())
    return {"": whole, **sizes}


def save(tokenizer: MaskTokenizer, directory: Path) -> None:
    """Write `model.safetensors` and `config.json` into `directory`, which exists. Equal weights, equal bytes."""
    from safetensors.torch import save_file

    state = {key: value.detach().cpu().contiguous() for key, value in tokenizer.state_dict().items()}
    save_file(state, directory / "model.safetensors")
    paths.write_json(directory / "config.json", {"codebook": "masks", "config": dataclasses.asdict(tokenizer.config)})


def load(directory: Path) -> MaskTokenizer:
    """The tokenizer written to `directory`, in eval mode. FileNotFoundError says how to make it."""
    from safetensors.torch import load_file

    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory} is not there: `dvc repro` makes it, `dvc pull {directory}` fetches it")
    tokenizer = build(restored(paths.read_json(directory / "config.json")["config"]))
    tokenizer.load_state_dict(load_file(directory / "model.safetensors"))
    return tokenizer.eval()


def restored(values: Mapping[str, Any]) -> Config:
    """A `Config` from JSON. ValueError for an unknown field."""
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(Config)})
    if unknown:
        raise ValueError(f"a mask tokenizer has no field {unknown}: saved by another version?")
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    recipe = {key: tuple(value) if isinstance(value, list) else value for key, value in values["recipe"].items()}
    return Config(**{**tuples, "recipe": Recipe(**recipe)})
