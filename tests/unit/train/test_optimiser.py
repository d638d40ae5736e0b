from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.unit.train import fakes
from unforge.train import optimiser


def test_schedule_by_hand() -> None:
    rates = [optimiser.learning_rate(step, 10, 2, 1.0, 0.1) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.55)  # half of the cosine
    assert rates[4] == pytest.approx(0.1 + 0.45 * (1 + math.sqrt(0.5)))  # a quarter of it
    assert rates[9] == pytest.approx(0.1 + 0.45 * (1 - math.cos(math.pi / 8)))
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))


def test_schedule_without_warmup_starts_at_lr_and_would_end_at_min_lr() -> None:
    assert optimiser.learning_rate(0, 4, 0, 1.0, 0.1) == 1.0
    assert optimiser.learning_rate(4, 4, 0, 1.0, 0.1) == pytest.approx(0.1)


def test_warmup_keeps_the_recipes_share_of_the_run() -> None:
    assert optimiser.warmup_steps(replace(fakes.RECIPE, epochs=200, warmup_epochs=4.0), 400) == 8


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # after one step Adam's update is lr * sign(gradient), whatever its size
        ("adamw", [1.0 - 0.1 * 0.5 * 1.0 - 0.1, -2.0 + 0.1 * 0.5 * 2.0 - 0.1]),
        ("adam", [1.0 - 0.1, -2.0 + 0.1]),  # 0.3 - 0.5 * 2 is negative: decay turns the second gradient
    ],
)
def test_one_step_by_hand(kind: str, expected: list[float]) -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    recipe = replace(fakes.RECIPE, optimiser=kind, lr=0.1)
    optimise = optimiser.build(recipe, [{"params": [weight], "weight_decay": 0.5}])
    weight.grad = torch.tensor([0.3, 0.3])
    optimise.step()
    assert weight.tolist() == pytest.approx(expected, abs=1e-6)


def test_unknown_optimiser_is_named() -> None:
    with pytest.raises(ValueError, match="sgd"):
        optimiser.build(replace(fakes.RECIPE, optimiser="sgd"), [{"params": [nn.Parameter(torch.zeros(1))]}])


def test_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = optimiser.Average(model, 0.15)
        model.weight.fill_(2.0)
        average.update(0)  # decay min(0.15, 1/10)
        model.weight.fill_(4.0)
        average.update(1)  # decay min(0.15, 2/11)
    first = 0.1 * 1.0 + 0.9 * 2.0
    assert average.state_dict()["weight"].item() == pytest.approx(0.15 * first + 0.85 * 4.0)


def test_average_is_applied_and_taken_away_again() -> None:
    model = fakes.Tiny()
    average = optimiser.Average(model, 0.9)
    with torch.no_grad():
        model.first.weight.add_(1.0)
    own = model.first.weight.clone()
    with average.applied():
        assert torch.equal(model.first.weight, average.state_dict()["first.weight"])
        assert not torch.equal(model.first.weight, own)
    assert torch.equal(model.first.weight, own)


@pytest.mark.parametrize("decay", [1.0, -0.5])
def test_average_refuses_a_decay_outside_0_to_1(decay: float) -> None:
    with pytest.raises(ValueError, match="ema"):
        optimiser.Average(fakes.Tiny(), decay)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_step_is_torchs_own_step(kind: str) -> None:
    recipe = replace(fakes.RECIPE, optimiser=kind)
    start, gradient = torch.randn(5, 3), torch.randn(5, 3)
    found = []
    for ours in (True, False):
        weight = torch.nn.Parameter(start.clone())
        optimise = optimiser.build(recipe, [{"params": [weight], "weight_decay": 0.1}])
        for _ in range(3):
            weight.grad = gradient.clone()
            if ours:
                optimiser.step(optimise, torch.amp.GradScaler("cpu", enabled=False))
            else:
                optimise.step()
        found.append(weight.detach())
    assert torch.equal(*found)
    assert not torch.equal(found[0], start)
