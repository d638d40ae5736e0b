"""Tiny tokenizers with a spread codebook, 16 pixels and a 4x4 map of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.unit.tokenizers.conftest import SHARED, TINY
from unforge import priors, tokenizers
from unforge.priors.base import Prior
from unforge.tokenizers.base import Tokenizer


@pytest.fixture(params=sorted(TINY))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer() -> Callable[[str], Tokenizer]:
    def made(name: str) -> Tokenizer:
        torch.manual_seed(0)
        config = dataclasses.replace(tokenizers.load_module(name).SMALL, **{**SHARED, **TINY[name]})
        result = tokenizers.build(name, config)
        if hasattr(result.quantizer, "codebook"):
            result.quantizer.codebook.data.normal_(std=0.3)
        return result.eval()

    return made


@pytest.fixture
def prior(tokenizer: Callable[[str], Tokenizer]) -> Callable[..., Prior]:
    """An untrained prior whose head says something; `changes` to its configuration."""

    def made(name: str, **changes: Any) -> Prior:
        config = dataclasses.replace(priors.config(name, "small"), **{"depth": 2, "width": 16, "heads": 2, **changes})
        torch.manual_seed(1)
        result: Prior = priors.load_module(priors.OF[name]).build(config, tokenizer(name))
        return result.eval()

    return made


@pytest.fixture
def maps() -> Callable[[Tokenizer, int], torch.Tensor]:
    """Random token maps of a tokenizer."""

    def made(tokenizer: Tokenizer, count: int) -> torch.Tensor:
        size = tokenizer.image_size
        shape = tokenizer.quantize(tokenizer.encode(torch.rand(1, 3, size, size))).tokens.shape[1:]
        if len(shape) == 2:
            return torch.rand(count, *shape) < 0.5
        return torch.randint(tokenizer.quantizer.codes, (count, *shape))

    return made
