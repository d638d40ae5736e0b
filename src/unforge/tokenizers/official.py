"""Released state dicts: which keys a file must hold, and loading one into a tokenizer."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unforge import paths
from unforge.tokenizers.base import Tokenizer, TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class Official:
    """A family's released weights, which a user supplies."""

    file: str
    """Name it was released under."""
    release: str
    """Whose release, and its licence."""
    entry: str
    """Key of the pickled dictionary under which the state dict lies; empty: the file is the state dict."""
    name: Callable[[str, TokenizerConfig], str]
    """Key in the file of a key of ours."""
    same: tuple[tuple[str, str], ...] = ()
    """(pattern, replacement) for other spellings of the file's keys."""
    ignored: tuple[str, ...] = ()
    """Patterns of keys that the file may hold and the tokenizer has no place for."""
    extras: Mapping[str, str] = field(default_factory=dict)
    """Further files that are needed: role and released name."""


def keys(tokenizer: Tokenizer, official: Official) -> dict[str, str]:
    """Key in the released file to our key, for all that the file must hold."""
    own = set(tokenizer.state_dict()) - tokenizer.unreleased()
    return {official.name(key, tokenizer.config): key for key in sorted(own)}


def matched(tokenizer: Tokenizer, official: Official, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """A released state dict under our keys.

    ValueError when a key is missing, has another shape or is not known: names them by the file's keys.
    """
    wanted, own = keys(tokenizer, official), tokenizer.state_dict()
    spelt: dict[str, Any] = {}
    for key, value in ((str(key), value) for key, value in given.items()):
        if not any(re.fullmatch(pattern, key) for pattern in official.ignored):
            for pattern, replacement in official.same:
                key = re.sub(pattern, replacement, key)
            spelt[key] = value
    found: dict[str, list[str]] = {
        "missing": sorted(set(wanted) - set(spelt)),
        "another shape": [
            f"{key} {tuple(getattr(spelt[key], 'shape', ('no tensor',)))} for {tuple(own[ours].shape)}"
            for key, ours in sorted(wanted.items())
            if key in spelt and getattr(spelt[key], "shape", None) != own[ours].shape
        ],
        "unexpected": sorted(set(spelt) - set(wanted)),
    }
    if any(found.values()):
        parts = [f"{len(names)} {what}: {_few(names)}" for what, names in found.items() if names]
        raise ValueError(f"not the state dict of {official.file}; {'; '.join(parts)}")
    return {ours: spelt[key] for key, ours in wanted.items()}


def load(tokenizer: Tokenizer, official: Official, given: Mapping[str, Any]) -> None:
    """Put a released state dict into a tokenizer, in place; nothing is changed when `matched` refuses it."""
    state = matched(tokenizer, official, given)
    with torch.no_grad():
        for key, value in tokenizer.state_dict().items():
            if key in state:
                value.copy_(state[key])
    tokenizer.trained()


def read(path: Path, sha256: str, entry: str = "") -> Any:
    """What a file holds, on the CPU: a state dict, or a tensor. `entry`: the key it lies under, where there is one.

    Only tensors are unpickled. FileNotFoundError when it is not there; ValueError when its hash is not `sha256`
    (hex), and when it holds more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give the path of the released file")
    if not re.fullmatch("[0-9a-f]{64}", sha256.lower()):
        raise ValueError(f"sha256 {sha256!r}: give the 64 hex digits that the publisher states or you checked yourself")
    digest = paths.sha256(path)
    if digest != sha256.lower():
        raise ValueError(f"{path} has SHA-256 {digest}, not {sha256.lower()}: another or a damaged file")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} holds more than tensors or is damaged: where you trust it, save its "
            f"{f'[{entry!r}]' if entry else 'state dict'} alone as .safetensors, and give that file's hash"
        ) from error
    if not isinstance(content, Mapping) or not entry:
        return content
    if entry in content:
        return content[entry]
    if all(isinstance(value, Tensor) for value in content.values()):
        return content
    raise ValueError(f"{path} has no entry {entry!r}: it has {_few(sorted(map(str, content)))}")


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
