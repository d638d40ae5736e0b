"""The forensic backbone: any size, frozen tokens, what it learns, the memory of its features."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from unforge import backbones
from unforge.backbones import forensic
from unforge.types import Batch

TINY = dataclasses.replace(forensic.SMALL, width=8, heads=2, rates=(2,))


@pytest.fixture
def model() -> forensic.Forensic:
    torch.manual_seed(0)
    return forensic.build(TINY, {})


def batch(image: torch.Tensor, mask: torch.Tensor | None) -> Batch:
    names = tuple(map(str, range(len(image))))
    return Batch(
        image=image, mask=mask, label=torch.ones(len(image), dtype=torch.int64), key=names, unit=names,
        source=tuple((name,) for name in names),
    )  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(64, 64), (1, 1), (37, 90), (8, 9)])
def test_maps_cover_an_image_of_any_size(model: forensic.Forensic, height: int, width: int) -> None:
    maps = model.eval()(torch.rand(2, 3, height, width))
    cells = (math.ceil(height / 8), math.ceil(width / 8))
    assert maps["logits"].shape == (2, 1, *cells)
    assert maps["deep"].shape == (2, 8, *cells)
    assert maps["shallow"].shape == (2, 8, 2 * cells[0], 2 * cells[1])
    assert model.tokens(torch.rand(2, 3, height, width), 4).shape == (2, 16, model.width)


def test_tokens_are_cell_means_row_by_row(model: forensic.Forensic) -> None:
    image = torch.rand(1, 3, 64, 32)
    maps = model.eval()(image)
    tokens = model.tokens(image, 2)
    deep = maps["deep"][0, :, 4:8, 0:2].mean((1, 2))
    probability = maps["logits"][0, 0, 4:8, 0:2].sigmoid().mean()
    torch.testing.assert_close(tokens[0, 2], torch.cat([deep, probability[None]]))


def test_tokens_need_no_mode_and_no_gradient(model: forensic.Forensic) -> None:
    image = torch.rand(2, 3, 32, 32)
    model.train()(torch.rand(4, 3, 32, 32))  # moves the statistics
    trained = model.tokens(image, 2)
    assert model.training, "the mode is left as it was"
    assert not trained.requires_grad
    assert torch.equal(trained, model.eval().tokens(image, 2))


def test_frozen_stays_in_eval_mode(model: forensic.Forensic) -> None:
    holder = torch.nn.ModuleList([model.freeze()])
    holder.train()
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_the_target_is_the_share_of_a_cell(model: forensic.Forensic) -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[:, :, :8, 4:] = 1  # cells: half, whole; none, none
    sample = batch(torch.rand(1, 3, 16, 16), mask)
    terms = model.requires_grad_(False).eval().loss(sample).terms
    p = model(sample.image)["logits"].sigmoid().detach().double().flatten()
    t = torch.tensor([0.5, 1.0, 0.0, 0.0], dtype=torch.double)
    assert float(terms["bce"]) == pytest.approx(float(-(t * p.log() + (1 - t) * (1 - p).log()).mean()), rel=1e-5)
    assert float(terms["dice"]) == pytest.approx(1 - float((2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)), rel=1e-5)
    assert float(model.loss(sample).total) == pytest.approx(float(terms["bce"] + 0.5 * terms["dice"]), rel=1e-6)
    with pytest.raises(ValueError, match="mask"):
        model.loss(batch(sample.image, None))


def test_it_learns_where_noise_is_missing(model: forensic.Forensic) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(8, 1, 64, 64)
    for i in range(8):
        mask[i, :, 8 * (i % 4) : 8 * (i % 4) + 32, 4 * i : 4 * i + 28] = 1
    noise = torch.randn(8, 3, 64, 64, generator=generator) * torch.where(mask > 0, 0.2, 4.0) / 255
    sample = batch((0.5 + noise).clamp(0, 1), mask)
    optimiser = torch.optim.AdamW(model.parameter_groups(0.0), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        model.loss(sample).total.backward()
        optimiser.step()
    p = model.eval()(sample.image)["logits"].sigmoid()
    target = torch.nn.functional.avg_pool2d(mask, 8)
    assert p[target == 1].mean() > 2 * p[target == 0].mean()


def test_imitation_is_the_mask_without_features(model: forensic.Forensic) -> None:
    mask = torch.zeros(64, 1, 32, 32)
    mask[:, :, :16] = 1
    torch.manual_seed(0)
    tokens = model.imitation(mask, 4)
    assert tokens.shape == (64, 16, model.width)
    assert bool((tokens[..., :-1] == 0).all())
    assert tokens[..., -1].min() >= 0
    assert tokens[..., -1].max() <= 1
    assert tokens[:, :4, -1].mean() > 0.75 > 0.25 > tokens[:, 12:, -1].mean()
    assert not torch.equal(tokens[0], tokens[1]), "each is uncertain in its own way"


def test_memory_computes_an_image_once() -> None:
    seen: list[float] = []

    def mean(one: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(float(one.mean()))
        return (one.mean((1, 2, 3)), one[:, :1])

    images = torch.randint(0, 256, (3, 3, 4, 4)) / 255
    memory = forensic.Memory(room=10**6)
    first = memory(images, mean)
    again = memory(images.flip(0), mean)
    assert len(seen) == 3
    assert torch.equal(first[0], images.mean((1, 2, 3)))
    assert torch.equal(again[1], images.flip(0)[:, :1])
    memory(images[:1, :, :, :2], mean)
    assert len(seen) == 4, "a part is another image"
    full = forensic.Memory(room=0)
    full(images, mean)
    full(images, mean)
    assert len(seen) == 10, "without room nothing is kept"


def test_save_and_load(model: forensic.Forensic, tmp_path: Path) -> None:
    backbones.save(model, "forensic", TINY, tmp_path)
    loaded = backbones.load(tmp_path)
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(loaded.tokens(image, 3), model.tokens(image, 3))


def test_groups_hold_every_parameter_once(model: forensic.Forensic) -> None:
    held = [id(p) for group in model.parameter_groups(0.1) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
