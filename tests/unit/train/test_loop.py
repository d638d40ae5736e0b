from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from tests.unit.train import fakes
from unforge.train import log, loop, optimiser
from unforge.train.distributed import World
from unforge.types import Batch, Losses

Fit = Callable[..., loop.Fitted]


def test_it_learns_and_says_so(fit: Fit) -> None:
    fitted = fit(fakes.Tiny(), steps=150, recipe=replace(fakes.RECIPE, lr=5e-2))
    totals = [value for _, name, value in fitted.log if name == "total"]
    assert sum(totals[-20:]) < 0.6 * sum(totals[:20])
    assert fitted.step == 150
    assert fitted.resumed == 0
    assert {name for _, name, _ in fitted.log} == {"total", "bce", "learning_rate"}


def test_same_seed_same_weights_other_seed_other_weights(fit: Fit) -> None:
    one, two, three = fakes.Tiny(), fakes.Tiny(), fakes.Tiny()
    fit(one)
    fit(two)
    fit(three, seed=1)
    assert fakes.equal(one, two)
    assert not fakes.equal(one, three)


def test_accumulation_equals_a_big_batch(fit: Fit) -> None:
    big, small = fakes.Tiny(dropout=0.0), fakes.Tiny(dropout=0.0)
    fit(big, batch=8)
    fit(small, batch=2, recipe=replace(fakes.RECIPE, accumulate=4))
    for ours, theirs in zip(big.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_clipping_bounds_the_gradient(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimiser, "build", lambda recipe, groups: torch.optim.SGD(groups, lr=recipe.lr))
    model = fakes.Tiny(dropout=0.0)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    recipe = replace(fakes.RECIPE, clip=1e-3, warmup_epochs=0.0, lr=1.0, weight_decay=0.0)
    fitted = fit(model, steps=1, recipe=recipe)
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    norm = next(value for _, name, value in fitted.log if name == "gradient_norm")
    assert norm > 1e-2  # logged as it was before
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)


def _validation(values: list[float], seen: list[dict[str, torch.Tensor]]) -> loop.Validate:
    remaining = iter(values)

    def validate(model: nn.Module, world: World) -> tuple[str, float]:
        assert not model.training
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return "made_up", next(remaining)

    return validate


@pytest.mark.parametrize(
    ("values", "chosen"),
    [([0.1, 0.5, 0.5, 0.2], 2), ([0.0, 0.0, 0.0, 0.0], 3), ([0.9, 0.5, 0.5, 0.2], 0), ([float("-inf")] * 4, 3)],
)
@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_best_validation_is_chosen_and_of_equals_the_latest(
    fit: Fit, values: list[float], chosen: int, ema: float | None
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    model = fakes.Tiny()
    recipe = replace(fakes.RECIPE, ema=ema)
    fitted = fit(model, steps=20, recipe=recipe, validate=_validation(values, seen), validate_every=5)
    assert fitted.step == 5 * (chosen + 1)
    assert all(torch.equal(model.state_dict()[k], seen[chosen][k]) for k in seen[chosen])
    assert [(s, v) for s, n, v in fitted.log if n == "validation/made_up"] == list(
        zip((5, 10, 15, 20), values, strict=True)
    )
    assert not model.training


def test_the_last_step_is_validated_too(fit: Fit) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    assert fit(fakes.Tiny(), steps=7, validate=_validation([0.1, 0.2], seen), validate_every=5).step == 7
    assert len(seen) == 2


def test_average_is_what_remains_without_validation(fit: Fit) -> None:
    plain, averaged = fakes.Tiny(), fakes.Tiny()
    fit(plain)
    fit(averaged, recipe=replace(fakes.RECIPE, ema=0.9))
    assert not fakes.equal(plain, averaged)


def test_validation_does_not_change_training(fit: Fit) -> None:
    plain, validated = fakes.Tiny(), fakes.Tiny()
    fit(plain)
    fit(validated, validate=_validation([0.1, 0.2], []))
    assert fakes.equal(plain, validated)


class _Broken(fakes.Tiny):
    def loss(self, batch: Batch) -> Losses:
        total = super().loss(batch).total * float("nan")
        return Losses(total=total, terms={})


def test_a_loss_that_is_not_finite_stops_the_run(fit: Fit) -> None:
    with pytest.raises(FloatingPointError, match="between steps 0 and 1"):
        fit(_Broken())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_runs_with_full_precision_weights(fit: Fit, dtype: str) -> None:
    low, full = fakes.Tiny(dropout=0.0), fakes.Tiny(dropout=0.0)
    fitted = fit(low, recipe=replace(fakes.RECIPE, dtype=dtype, clip=1.0), steps=30)
    fit(full, recipe=replace(fakes.RECIPE, clip=1.0), steps=30)
    assert {p.dtype for p in low.parameters()} == {torch.float32}
    totals = [value for _, name, value in fitted.log if name == "total"]
    assert totals[-1] < totals[0]
    assert not fakes.equal(low, full)
    torch.testing.assert_close(low.first.weight, full.first.weight, atol=0.1, rtol=0.1)


def test_loading_processes_change_nothing(fit: Fit) -> None:
    none, two = fakes.Tiny(), fakes.Tiny()
    fit(none)
    fit(two, workers=2, data=fakes.samples(workers=2))
    assert fakes.equal(none, two)


def test_batch_must_divide_by_the_processes(fit: Fit, world: World) -> None:
    with pytest.raises(ValueError, match="batch 4 does not divide by 3"):
        fit(fakes.Tiny(), world=World(device=world.device, rank=0, size=3))


def test_no_steps_no_change(fit: Fit) -> None:
    model = fakes.Tiny()
    fitted = fit(model, steps=0)
    assert fitted.log == []
    assert fakes.equal(model, fakes.Tiny())


def test_log_points_are_means_over_their_steps(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = [v for _, n, v in fit(fakes.Tiny(), steps=6).log if n == "bce"]
    monkeypatch.setattr(loop, "LOG_POINTS", 2)
    coarse = [(s, v) for s, n, v in fit(fakes.Tiny(), steps=6).log if n == "bce"]
    assert [s for s, _ in coarse] == [3, 6]
    assert [v for _, v in coarse] == pytest.approx([sum(fine[:3]) / 3, sum(fine[3:]) / 3])


def test_log_file_is_byte_stable(tmp_path: Path) -> None:
    rows = [(1, "total", 0.5), (2, "total", 0.25)]
    for name in ("a", "b"):
        log.write(tmp_path / name, rows, {"run": "r", "seed": 0})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pq.read_table(tmp_path / "a").to_pylist()[1] == {"step": 2, "name": "total", "value": 0.25}
    log.write(tmp_path / "empty", [], {})
    assert pq.read_table(tmp_path / "empty").num_rows == 0
