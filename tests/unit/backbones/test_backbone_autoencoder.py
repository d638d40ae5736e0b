"""The autoencoder that re-renders regions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from unforge import backbones
from unforge.backbones import autoencoder
from unforge.types import Batch


@pytest.fixture
def model() -> autoencoder.Autoencoder:
    torch.manual_seed(0)
    return autoencoder.build(autoencoder.SMALL, {}).eval()


def batch(images: torch.Tensor) -> Batch:
    count = len(images)
    names = tuple(map(str, range(count)))
    return Batch(
        image=images,
        mask=None,
        label=torch.zeros(count, dtype=torch.int64),
        key=names,
        unit=names,
        source=tuple((name,) for name in names),
    )


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (37, 90), (120, 131)])
def test_any_size_is_rendered(model: autoencoder.Autoencoder, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = image.copy()
    rendered = model.render(image)
    assert rendered.shape == image.shape
    assert rendered.dtype == np.uint8
    assert np.array_equal(image, before)
    assert np.array_equal(rendered, model.render(image))


def test_render_is_the_forward_pass(model: autoencoder.Autoencoder) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model(torch.from_numpy(image / 255.0).float().permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert np.abs(model.render(image) - expected.numpy().clip(0, 1) * 255).max() <= 0.51


def test_loss_is_the_mean_absolute_error(model: autoencoder.Autoencoder) -> None:
    images = torch.rand(2, 3, 32, 32)
    losses = model.loss(batch(images))
    assert losses.total.item() == pytest.approx((model(images) - images).abs().mean().item())
    assert set(losses.terms) == {"l1"}


def test_groups_hold_every_parameter_once(model: autoencoder.Autoencoder) -> None:
    groups = model.parameter_groups(0.1)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.ndim == 1 for p in groups[1]["params"])


def test_it_learns() -> None:
    torch.manual_seed(0)
    model = autoencoder.build(autoencoder.Config(width=8), {})
    optimiser = torch.optim.AdamW(model.parameter_groups(0.0), lr=1e-2)
    axis = torch.linspace(0, 6, 32)
    waves = torch.stack([torch.sin(axis[None] * a + axis[:, None] * b) for a, b in [(1, 0), (0, 1), (1, 1), (2, 1)]])
    images = (waves[:, None] * torch.tensor([0.4, -0.3, 0.2])[None, :, None, None] + 0.5).contiguous()
    first = model.loss(batch(images)).total.item()
    for _ in range(60):
        optimiser.zero_grad()
        model.loss(batch(images)).total.backward()
        optimiser.step()
    assert model.loss(batch(images)).total.item() < 0.4 * first


def test_save_and_load(model: autoencoder.Autoencoder, tmp_path: Path) -> None:
    config = dataclasses.replace(autoencoder.SMALL, width=16)
    other = autoencoder.build(config, {})
    backbones.save(other, "autoencoder", config, tmp_path)
    loaded = backbones.load(tmp_path)
    assert not loaded.training
    image = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(loaded.render(image), other.eval().render(image))
    assert backbones.restore(autoencoder.Config, {**dataclasses.asdict(config)}) == config


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        backbones.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="autoencoder"):
        backbones.load_module("autoencodr")
