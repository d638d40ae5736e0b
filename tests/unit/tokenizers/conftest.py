"""Fixtures of the tokenizers' tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from unforge import tokenizers
from unforge.tokenizers.base import Tokenizer
from unforge.types import Batch

TINY: dict[str, dict[str, Any]] = {
    "llamagen": {"codes": 24, "latent": 8},
    "taming": {"codes": 24, "latent": 8, "channels": 6},
    "vqdiffusion": {"codes": 24, "latent": 8, "channels": 6, "used": 10},
    "rar": {"codes": 24, "channels": 6},
    "var": {"codes": 24, "channels": 6, "scales": (1, 2, 4)},
    "infinity": {"bits": 5, "scales": (1, 2, 4)},
}
SHARED = {"image_size": 16, "width": 4, "multipliers": (1, 2, 3), "blocks": 1, "groups": 2, "unquantised_steps": 0}


@pytest.fixture(params=sorted(TINY))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """A family's configuration for 16 pixels and a 4x4 map of tokens."""
    return lambda name, **changes: dataclasses.replace(
        tokenizers.load_module(name).SMALL, **{**SHARED, **TINY[name], **changes}
    )


@pytest.fixture
def make(tiny: Callable[..., Any]) -> Callable[..., Tokenizer]:
    """A tiny tokenizer with a spread codebook, in eval mode."""

    def made(name: str, **changes: Any) -> Tokenizer:
        torch.manual_seed(0)
        tokenizer = tokenizers.build(name, tiny(name, **changes))
        if hasattr(tokenizer.quantizer, "codebook"):
            tokenizer.quantizer.codebook.data.normal_(std=0.3)
        return tokenizer.eval()

    return made


@pytest.fixture
def batch() -> Callable[[torch.Tensor], Batch]:
    def made(images: torch.Tensor) -> Batch:
        names = tuple(map(str, range(len(images))))
        return Batch(
            image=images, mask=None, label=torch.zeros(len(images), dtype=torch.int64), key=names, unit=names,
            source=tuple((name,) for name in names),
        )  # fmt: skip

    return made
