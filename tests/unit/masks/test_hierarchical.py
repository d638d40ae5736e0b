"""The hierarchical mask loss against numbers worked by hand and SciPy's Gaussian."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from unforge.masks import hierarchical

LN2 = math.log(2)


def test_terms_by_hand() -> None:
    """All probabilities 0.5: the first mask has one pixel of four, the second all."""
    logits = torch.zeros(2, 1, 2, 2)
    target = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]]).view(2, 1, 2, 2)
    bce, dice = hierarchical.terms(logits, target)
    assert bce.item() == pytest.approx(LN2)
    assert dice.item() == pytest.approx(((1 - 2 * 0.5 / (2 + 1)) + (1 - 2 * 2 / (2 + 4))) / 2, abs=1e-5)
    _, pooled = hierarchical.terms(logits, target, pooled=True)
    assert pooled.item() == pytest.approx(1 - 2 * 2.5 / (4 + 5), abs=1e-5)


def test_a_perfect_mask_costs_nothing_even_an_empty_one() -> None:
    target = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0]]).view(2, 1, 2, 2)
    bce, dice = hierarchical.terms(40 * (2 * target - 1), target)
    assert bce.item() < 1e-6
    assert dice.item() < 1e-6


def test_the_blur_of_the_released_code() -> None:
    assert hierarchical.sigma(0) == 48
    assert hierarchical.sigma(30) == pytest.approx(1.125)
    assert hierarchical.sigma(-1) == 98
    assert hierarchical.sigma(1, latents=8, size=64) == pytest.approx((100 / 6 - 2) / 4)
    assert hierarchical.sigma(-1, latents=4, size=64) == 98 / 4


@pytest.mark.parametrize("latents", [2, 4, 8, 32])
@pytest.mark.parametrize("form", ["paper", "released"])
def test_every_prefix_that_can_be_drawn_has_a_target(form: hierarchical.Form, latents: int) -> None:
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:9, 3:12] = 1
    drawn = hierarchical.draw(form, latents, latents, np.random.Generator(np.random.PCG64(0)))
    assert len(drawn) == (latents if form == "released" else latents - 1)
    soft = [hierarchical.blurred(target, hierarchical.sigma(length, latents, 16)) for _, length in sorted(drawn)]
    assert all(bool(torch.isfinite(one).all()) and one.max() == 1 for one in soft)


@pytest.mark.parametrize("deviation", [0.7, 2.3, 6.0])
def test_a_blurred_mask_is_scipys_over_its_maximum(deviation: float) -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    mask = (rng.random((3, 1, 20, 20)) > 0.9).astype(np.float64)
    soft = hierarchical.blurred(torch.from_numpy(mask), deviation).numpy()
    for ours, one in zip(soft[:, 0], mask[:, 0], strict=True):
        radius = math.ceil(3 * deviation)
        wanted = scipy.ndimage.gaussian_filter(one, deviation, mode="constant", radius=radius)
        np.testing.assert_allclose(ours, wanted / wanted.max(), atol=1e-12)
    assert hierarchical.blurred(torch.zeros(1, 1, 8, 8), 2.0).abs().max() == 0


def test_prefixes_are_drawn_as_the_form_says() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    first = {"paper": [0] * 40, "released": [0] * 40}
    for _ in range(3000):
        correct = hierarchical.draw("paper", 32, 3, rng)
        assert len({kept for kept, _ in correct}) == 3
        assert all(kept == length and 1 <= kept <= 31 for kept, length in correct)
        first["paper"][correct[0][0]] += 1
        released = hierarchical.draw("released", 32, 3, rng)
        assert all((kept, length) == (31, -1) or (kept == length and 0 <= kept <= 30) for kept, length in released)
        first["released"][released[0][1] + 1] += 1
    weights = {"paper": [1 / (length + 8) for length in range(1, 32)], "released": [1 / (i + 9) for i in range(32)]}
    for form, counts in first.items():
        seen = np.array(counts[1:32] if form == "paper" else counts[:32])
        wanted = 3000 * np.array(weights[form]) / sum(weights[form])
        assert (np.abs(seen - wanted) < 4.5 * np.sqrt(wanted)).all()


def test_as_many_prefixes_as_there_are() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    assert sorted(kept for kept, _ in hierarchical.draw("paper", 3, 5, rng)) == [1, 2]
    with pytest.raises(ValueError, match="paper and released"):
        hierarchical.draw("both", 3, 5, rng)  # type: ignore[arg-type]


def test_the_loss_counts_every_prefix_and_the_released_one_the_last() -> None:
    target = torch.zeros(1, 1, 8, 8)
    target[..., 2:6, 2:6] = 1
    value = {4: 2.0, 1: -1.0, 3: 0.5}
    asked: list[int] = []

    def decode(kept: int) -> torch.Tensor:
        asked.append(kept)
        return torch.full((1, 1, 8, 8), value[kept])

    def wanted(kept: int, soft: np.ndarray) -> float:
        p = 1 / (1 + math.exp(-value[kept]))
        bce = -(soft * math.log(p) + (1 - soft) * math.log(1 - p)).mean()
        return float(bce + 0.25 * (1 - 2 * p * soft.sum() / (64 * p + soft.sum())))

    def soft(length: float) -> np.ndarray:
        deviation = (100 / (length * 8 + 2) - 2) * 8 / 256
        blurred = scipy.ndimage.gaussian_filter(
            target[0, 0].double().numpy(), deviation, mode="constant", radius=math.ceil(3 * deviation)
        )
        return blurred / blurred.max()

    prefixes = [(1, 1), (3, 3)]
    whole, prefix = hierarchical.loss(decode, target, prefixes, latents=4, form="paper", dice=0.25)
    assert whole.item() == pytest.approx(wanted(4, target[0, 0].numpy()), rel=1e-5)
    assert prefix.item() == pytest.approx((wanted(1, soft(1)) + wanted(3, soft(3))) / 2, rel=1e-5)
    assert sorted(asked) == [1, 3, 4]
    whole_released, last = hierarchical.loss(decode, target, prefixes, latents=4, form="released", dice=0.25)
    assert whole_released.item() == pytest.approx(whole.item())
    assert last.item() == pytest.approx(wanted(3, soft(3)), rel=1e-5)
