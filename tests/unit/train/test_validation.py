from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from tests.unit.train import fakes
from unforge.train.data import Member
from unforge.train.distributed import World
from unforge.train.validate import Validation, macro_accuracy, pixel_f1, unit_auc
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
    assert model.shown == 1 + 5  # the first image tells what is predicted
    assert Validation(members, count=None, size=16)(_Bright(blind=True), world)[1] == 0.0


def test_the_same_few_images_for_every_run(world: World) -> None:
    fake = fakes.FakeSet("a", 8)
    first = Validation([fakes.member(fake)], count=3, size=16)
    again = Validation([fakes.member(fake)], count=3, size=16)
    more = Validation([fakes.member(fake)], count=5, size=16)
    few = [key for _, key in first.chosen("video_auc")]
    assert few == [key for _, key in again.chosen("video_auc")] == [key for _, key in more.chosen("video_auc")][:3]
    assert len(few) == 3


def test_without_masks_minus_the_loss_of_the_centre(world: World) -> None:
    members = [fakes.member(fakes.FakeSet("a", 2))]
    assert Validation(members, count=None, size=16)(_Bright(masks=False), world) == ("negative_loss", -16.0)

    class Encoder(nn.Module):
        loss = _Bright.loss

    assert Validation(members, count=None, size=16)(Encoder(), world) == ("negative_loss", -16.0)


class _Judge(nn.Module):
    """Scores and classes by brightness, with a mask where `masks`."""

    def __init__(self, *, classes: bool, masks: bool = False) -> None:
        super().__init__()
        self.classes, self.masks = classes, masks

    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        bright = image.mean()[None]
        return Prediction(
            mask=(image.mean(1, keepdim=True) > 0.37).float() if self.masks else None,
            score=bright,
            class_probs=torch.stack([0.3 - bright, 0 * bright, bright - 0.3], dim=1) if self.classes else None,
        )


def _kinds() -> list[Member]:
    """Six authentic images (two of each unit), five tampered with, and three generated as a whole."""
    real, forged = fakes.FakeSet("bb", 6, label=0), fakes.FakeSet("a", 5)
    whole = fakes.FakeSet("ccc", 3, kind="generated")
    for place, row in enumerate(real.rows.values()):
        row["unit"] = f"video{place // 2}"
    return [fakes.member(fake) for fake in (real, forged, whole)]


def test_classes_without_masks_are_judged_by_balanced_accuracy(world: World) -> None:
    members = _kinds()
    name, value = Validation(members, count=None, size=16)(_Judge(classes=True), world)
    true, named = [], []
    for member, kind in zip(members, (0, 2, 1), strict=True):
        for key in member.keys:
            true.append(kind)
            named.append(2 if member.shards.image(key).mean() / 255 > 0.3 else 0)
    assert name == "class_acc@macro"
    assert value == pytest.approx(balanced_accuracy_score(true, named))
    assert 0 < value < 1


def test_scores_are_judged_by_the_area_over_units(world: World) -> None:
    members = _kinds()
    name, value = Validation(members, count=None, size=16)(_Judge(classes=False), world)
    units: dict[str, list[float]] = {}
    for member in members:
        for key in member.keys:
            units.setdefault(member.shards.row(key)["unit"], []).append(member.shards.image(key).mean())
    labels = [not unit.startswith("video") for unit in units]
    assert name == "video_auc"
    assert value == pytest.approx(roc_auc_score(labels, [np.mean(v) for v in units.values()]))
    assert len(units) == 3 + 5 + 3


def test_masks_beside_classes_are_judged_together(world: World) -> None:
    """Half by the classes of all images, half by the F1 of what was tampered with."""
    name, value = Validation(_kinds(), count=None, size=16)(_Judge(classes=True, masks=True), world)
    assert name == "class_acc@macro+pixel_f1@tampered"
    classes = Validation(_kinds(), count=None, size=16)(_Judge(classes=True), world)[1]
    tampered = Validation(_kinds()[1:2], count=None, size=16)(_Bright(), world)[1]
    assert value == pytest.approx((classes + tampered) / 2)
    assert classes != pytest.approx(tampered)
    # without a tampered image the classes decide
    whole = Validation(_kinds()[::2], count=None, size=16)
    assert whole(_Judge(classes=True, masks=True), world)[1] == whole(_Judge(classes=True), world)[1]


def test_area_and_accuracy_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    label, score = rng.random(40) < 0.4, rng.integers(0, 6, 40) / 5
    triples = [(str(i), int(one), float(s)) for i, (one, s) in enumerate(zip(label, score, strict=True))]
    assert unit_auc(triples) == pytest.approx(roc_auc_score(label, score))
    true, named = rng.integers(0, 2, 40), rng.integers(0, 3, 40)
    pairs = list(zip(true.tolist(), named.tolist(), strict=True))
    recalls = [np.mean(named[true == one] == one) for one in (0, 1)]
    assert macro_accuracy(pairs) == pytest.approx(np.mean(recalls))


def test_one_kind_only_has_no_area(world: World) -> None:
    with pytest.raises(ValueError, match="take more validation_images"):
        Validation(_kinds()[:1], count=None, size=16)(_Judge(classes=False), world)


def test_nothing_to_validate_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no validation image"):
        Validation([], count=None, size=16)
