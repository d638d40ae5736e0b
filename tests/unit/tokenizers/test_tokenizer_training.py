"""How small tokenizers learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unforge.tokenizers.base import Tokenizer, measure
from unforge.train.distributed import World
from unforge.train.loop import Fitted, fit
from unforge.types import Batch, Recipe

Make = Callable[..., Tokenizer]
RECIPE = Recipe(source="test", optimiser="adamw", lr=3e-3, min_lr=1e-3, batch=4, epochs=1, samples_per_epoch=1)


def pictures(count: int, seed: int, size: int = 16) -> torch.Tensor:
    """Two flat colours with a straight edge, and some noise."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(count, 2, 3, generator=generator)
    angle, offset = (
        torch.rand(count, 1, 1, generator=generator) * 6.3,
        torch.rand(count, 1, 1, generator=generator) - 0.5,
    )
    axis = torch.linspace(-1, 1, size)
    side = (torch.cos(angle) * axis[None, :, None] + torch.sin(angle) * axis[None, None] > offset).float()[:, None]
    image = colours[:, 0, :, None, None] * side + colours[:, 1, :, None, None] * (1 - side)
    return (image + 0.02 * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def test_the_terms_of_the_loss(family: str, make: Make, batch: Callable[[torch.Tensor], Batch]) -> None:
    tokenizer = make(family)
    images = pictures(3, 0)
    losses = tokenizer.loss(batch(images))
    error = 2 * (tokenizer(images) - images)
    expected = {"mse": error.square().mean(), "l1": error.abs().mean()}
    features = tokenizer.encode(images)
    distances = [
        (features - part).square().mean() for part in tokenizer.quantizer.sums(tokenizer.quantizer.search(features))
    ]
    expected["commitment"] = distances[-1] if family == "infinity" else torch.stack(distances).mean()
    if family != "infinity":
        expected["codebook"] = expected["commitment"]
    assert set(losses.terms) == set(expected)
    if family == "vqdiffusion":
        expected.pop("mse"), expected.pop("l1")  # learns by all codes; what a generator sees is remapped
    for name, value in expected.items():
        assert losses.terms[name].item() == pytest.approx(value.item(), rel=1e-4), name
    weighted = sum(value * (0.25 if name == "commitment" else 1) for name, value in losses.terms.items())
    assert losses.total.item() == pytest.approx(weighted.item(), rel=1e-5)


def test_every_parameter_learns(family: str, make: Make, batch: Callable[[torch.Tensor], Batch]) -> None:
    tokenizer = make(family).train()
    tokenizer.loss(batch(pictures(3, 0))).total.backward()
    still = [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    phis = set(range(4)) - set(tokenizer.quantizer.phi_of) if family == "var" else set()
    assert still == [
        f"quantizer.phi.{i}.{kind}" for i in phis for kind in ("weight", "bias")
    ]  # three scales, four phis


def test_training_quantises_in_full_precision_under_autocast(
    family: str, make: Make, batch: Callable[[torch.Tensor], Batch]
) -> None:
    tokenizer = make(family).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = tokenizer.loss(batch(pictures(3, 0)))
    assert losses.terms["commitment"].dtype == torch.float32
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in tokenizer.parameters() if p.grad is not None)


def test_groups_hold_every_parameter_once(family: str, make: Make) -> None:
    tokenizer = make(family)
    decayed, others = tokenizer.parameter_groups(0.1)
    held = [id(p) for group in (decayed, others) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in tokenizer.parameters())
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    codebook = getattr(tokenizer.quantizer, "codebook", None)
    assert all(p.ndim > 1 and p is not codebook for p in decayed["params"])


def test_first_unquantised_then_from_data(make: Make, batch: Callable[[torch.Tensor], Batch]) -> None:
    tokenizer = make("taming", unquantised_steps=2).train()
    before = tokenizer.quantizer.codebook.detach().clone()
    images = pictures(4, 0)
    for step in (1, 2):
        losses = tokenizer.loss(batch(images))
        assert set(losses.terms) == {"mse", "l1"}
        assert int(tokenizer.step) == step
        assert torch.equal(tokenizer.quantizer.codebook, before)
    losses = tokenizer.loss(batch(images))
    assert set(losses.terms) == {"mse", "l1", "codebook", "commitment"}
    rows = tokenizer.encode(images).permute(0, 2, 3, 1).reshape(-1, 6)
    assert (rows[:, None] - tokenizer.quantizer.codebook[None]).abs().amax(2).amin(0).max() < 1e-6
    assert losses.terms["commitment"] < rows.var(0).mean()


def test_eval_counts_nothing_and_is_always_quantised(
    family: str, make: Make, batch: Callable[[torch.Tensor], Batch]
) -> None:
    tokenizer = make(family, unquantised_steps=5)
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    losses = tokenizer.loss(batch(pictures(3, 0)))
    assert "commitment" in losses.terms
    assert all(torch.equal(value, before[key]) for key, value in tokenizer.state_dict().items())


class KilledError(Exception):
    """The run is killed."""


class OnHost:
    def __init__(self, made: Callable[[torch.Tensor], Batch], images: torch.Tensor) -> None:
        self.made, self.images = made, images

    def batch(self, device: torch.device) -> Batch:
        return self.made(self.images.to(device))


class Pictures:
    """Training data by step; `stop`: the step at which the process dies."""

    def __init__(self, batch: Callable[[torch.Tensor], Batch], stop: int = -1) -> None:
        self.made, self.stop = batch, stop

    def load(self, step: int, first: int, count: int) -> Any:
        if step == self.stop:
            raise KilledError
        return OnHost(self.made, pictures(count, 1000 + step))


def train(tokenizer: Tokenizer, data: Pictures, folder: Path, steps: int = 10) -> Fitted:
    return fit(
        tokenizer, data, None, RECIPE, world=World(device=torch.device("cpu")), steps=steps, batch=4, seed=0,
        validate_every=100, checkpoint_every=3, resume=folder,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["infinity", "taming", "var"])
def test_a_killed_run_continues_bit_for_bit(
    family: str, make: Make, batch: Callable[[torch.Tensor], Batch], tmp_path: Path
) -> None:
    """Killed after the codebook's start and between two revivals: `step`, `ready` and `idle` must survive."""
    whole = make(family, unquantised_steps=3, revive_after=2)
    train(whole, Pictures(batch), tmp_path / "whole")
    killed = make(family, unquantised_steps=3, revive_after=2)
    with pytest.raises(KilledError):
        train(killed, Pictures(batch, stop=7), tmp_path / "killed")
    again = make(family, unquantised_steps=3, revive_after=2)
    assert train(again, Pictures(batch), tmp_path / "killed").resumed == 6
    state = again.state_dict()
    assert [key for key, value in whole.state_dict().items() if not torch.equal(value, state[key])] == []


def test_no_collapse(make: Make, batch: Callable[[torch.Tensor], Batch], tmp_path: Path) -> None:
    """Most codes are used after a start from data and revivals, and almost none from the uniform start alone."""
    images = pictures(60, 7)
    kept = make("rar", unquantised_steps=10, revive_after=5, codes=64)
    train(kept, Pictures(batch), tmp_path / "kept", steps=28)
    found = measure(kept, images)
    collapsed = make("rar", revive_after=10**6, codes=64)
    collapsed.quantizer.codebook.data.uniform_(-1 / 64, 1 / 64)
    collapsed.quantizer.ready.fill_(True)
    train(collapsed, Pictures(batch), tmp_path / "collapsed", steps=28)
    assert found["used"] > 35
    assert measure(collapsed, images)["used"] < 0.5 * found["used"]
    assert found["psnr"] > measure(make("rar", codes=64), images)["psnr"] + 3


def test_settling_chooses_the_codes_that_are_used(make: Make) -> None:
    tokenizer, images = make("vqdiffusion"), pictures(12, 0)
    tokenizer.quantizer.ready.fill_(True)
    indices = tokenizer.quantizer.search(tokenizer.encode(images))
    tokenizer.settle(images)
    counts = torch.bincount(indices.flatten(), minlength=24)
    assert counts[tokenizer.quantizer.to_full].sum() == counts.topk(10).values.sum()


def test_a_run_that_was_too_short_for_quantising_settles(family: str, make: Make) -> None:
    tokenizer, images = make(family), pictures(12, 0)
    if family == "infinity":
        before = tokenizer.state_dict()
        tokenizer.settle(images)
        assert all(torch.equal(value, before[key]) for key, value in tokenizer.state_dict().items())
        return
    tokenizer.quantizer.codebook.data.fill_(50.0)
    tokenizer.settle(images)
    assert bool(tokenizer.quantizer.ready)
    assert measure(tokenizer, images)["used"] >= 5
    once = tokenizer.quantizer.codebook.detach().clone()
    tokenizer.settle(images)
    assert torch.equal(tokenizer.quantizer.codebook, once)


def test_a_share_of_the_steps_is_not_quantised(tiny: Callable[..., Any]) -> None:
    config = tiny("var").for_steps(700)
    assert config.unquantised_steps == 210
    assert config.scales == tiny("var").scales


def test_processes_share_one_codebook(
    make: Make, batch: Callable[[torch.Tensor], Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started or revived codes are the first process's, and a code is idle only where no process chose it."""
    sent: list[str] = []
    tokenizer = make("taming", revive_after=1).train()

    def broadcast(values: torch.Tensor, source: int) -> None:
        assert source == 0
        sent.append("codebook")
        values.fill_(0.125)

    def all_reduce(values: torch.Tensor) -> None:
        sent.append("chosen")
        values[5] += 3

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    tokenizer.loss(batch(pictures(3, 0)))
    assert sent == ["codebook", "chosen"]
    assert tokenizer.quantizer.codebook.unique().tolist() == [0.125]
    # all codes are equal now: this process chose the lowest, the other code 5
    assert (tokenizer.quantizer.idle == 0).nonzero().flatten().tolist() == [0, 5]
