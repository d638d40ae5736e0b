"""Counting: parts, what does not run, and what is trained, on networks small enough to count by hand."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unforge import counts, methods


@dataclass(frozen=True, kw_only=True)
class Config:
    tail: bool = False
    count_size: int = 4


class Toy(nn.Module):
    """A 1x1 convolution of 3 to 2 channels; `outer` is never called itself, only what is in it; `idle` never runs."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 1, bias=False)
        self.outer = nn.ModuleDict({"a": nn.Linear(2, 5), "b": nn.Sequential(nn.Linear(5, 1))})
        self.idle = nn.Linear(7, 7)
        self.tail = nn.Linear(1, 3) if config.tail else None
        self.first.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        found = self.outer["b"](self.outer["a"](self.first(image).mean((2, 3))))
        return found if self.tail is None else self.tail(found)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    module = SimpleNamespace(
        Config=Config,
        SMALL=Config(),
        VARIANTS={"": Config(), "tail": Config(tail=True)},
        PARTS={"outer": "outer", "idle": "idle", "tail": "tail"},
        build=lambda config, assets: Toy(config),
    )
    load = methods.load_module
    monkeypatch.setattr(methods, "load_module", lambda name: module if name == "toy" else load(name))
    return module


def test_parts_by_hand(toy: Any) -> None:
    first, outer, idle = (6, 16 * 6 + 2 * 16), (2 * 5 + 5 + 5 + 1, 10 + 5), (7 * 7 + 7, 0)
    assert counts.of("toy") == {"": (6 + 21 + 56, first[1] + outer[1]), "outer": outer, "idle": idle}
    # a part that only some variants have
    assert counts.of("toy", "tail")["tail"] == (6, 3)


def test_what_learns_is_a_part_where_a_method_says_so(toy: Any) -> None:
    toy.TRAINABLE = True
    rows = {(row["variant"], row["part"]): row for row in counts.rows("toy")}
    assert set(rows) == {(v, p) for v in ("", "tail") for p in ("", "outer", "idle", "trainable")} | {("tail", "tail")}
    assert rows["", "trainable"]["params"] == 21 + 56
    assert rows["", "trainable"]["macs"] == rows["", ""]["macs"]
    assert {row["input_size"] for row in rows.values()} == {4}


@pytest.mark.parametrize("name", methods.names())
def test_every_part_is_in_some_variant(name: str) -> None:
    module = methods.load_module(name)
    missing = dict(getattr(module, "PARTS", {}))
    for variant in module.VARIANTS:
        if not missing:
            break
        with torch.device("meta"):
            method = module.build(methods.config(name, variant), {})
        present = dict(method.named_modules())
        missing = {part: attribute for part, attribute in missing.items() if attribute not in present}
    assert not missing
