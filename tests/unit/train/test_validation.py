from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional

from tests.unit.train import fakes
from unforge.train.distributed import World
from unforge.train.validate import Validation, pixel_f1
from unforge.types import Batch, Losses, Prediction

Make = Callable[..., Validation]


def test_pixel_f1_is_scikit_learns_at_the_masks_size() -> None:
    torch.manual_seed(0)
    mask = np.random.default_rng(0).random((30, 41)) < 0.3
    probability = torch.rand(1, 1, 30, 41)
    assert pixel_f1(probability, mask) == pytest.approx(f1_score(mask.ravel(), probability[0, 0].numpy().ravel() > 0.5))
    small = torch.rand(1, 1, 11, 13)
    full = functional.interpolate(small, size=(30, 41), mode="bilinear", align_corners=False)[0, 0].numpy()
    assert pixel_f1(small, mask) == pytest.approx(f1_score(mask.ravel(), full.ravel() > 0.5))


def test_pixel_f1_by_hand() -> None:
    mask = np.array([[True, True], [False, False]])
    assert pixel_f1(torch.tensor([[[[0.9, 0.5], [0.51, 0.1]]]]), mask) == 0.5  # exactly 0.5 is not above
    assert pixel_f1(torch.zeros(1, 1, 2, 2), np.zeros((2, 2), bool)) == 1.0
    assert pixel_f1(torch.zeros(1, 1, 2, 2), mask) == 0.0


class _Bright(nn.Module):
    """Takes what is bright for manipulated: right on the fake images."""

    def __init__(self, *, masks: bool = True, blind: bool = False) -> None:
        super().__init__()
        self.masks, self.blind, self.shown = masks, blind, 0

    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        self.shown += 1
        mask = (image.mean(1, keepdim=True) > 0.37).float() * (0.0 if self.blind else 1.0)
        return Prediction(mask=mask if self.masks else None)

    def loss(self, batch: Batch) -> Losses:
        return Losses(total=batch.image.mean() * 0 + float(batch.image.shape[-1]), terms={})


def test_mean_over_manipulated_images_only(world: World) -> None:
    members = [fakes.member(fakes.FakeSet("a", 5)), fakes.member(fakes.FakeSet("bb", 9, label=0))]
    model = _Bright()
    name, value = Validation(members, count=None, size=16)(model, world)
    expected = []
    for key in members[0].keys:
        found = members[0].shards.image(key).astype(float).mean(2) / 255 > 0.37
        expected.append(f1_score(members[0].shards.mask(key).ravel(), found.ravel()))
    assert name == "pixel_f1@0.5"
    assert value == pytest.approx(np.mean(expected), abs=1e-3)
    assert 0.5 < value < 1
    assert model.shown == 5
    assert Validation(members, count=None, size=16)(_Bright(blind=True), world)[1] == 0.0


def test_the_same_few_images_for_every_run(world: World) -> None:
    fake = fakes.FakeSet("a", 8)
    first = Validation([fakes.member(fake)], count=3, size=16)
    again = Validation([fakes.member(fake)], count=3, size=16)
    more = Validation([fakes.member(fake)], count=5, size=16)
    assert [key for _, key in first.rows] == [key for _, key in again.rows] == [key for _, key in more.rows][:3]
    assert len(first.rows) == 3


def test_without_masks_minus_the_loss_of_the_centre(world: World) -> None:
    members = [fakes.member(fakes.FakeSet("a", 2))]
    assert Validation(members, count=None, size=16)(_Bright(masks=False), world) == ("negative_loss", -16.0)

    class Encoder(nn.Module):
        loss = _Bright.loss

    assert Validation(members, count=None, size=16)(Encoder(), world) == ("negative_loss", -16.0)


def test_nothing_to_validate_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no validation image"):
        Validation([], count=None, size=16)
