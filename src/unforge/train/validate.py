"""What selects a checkpoint: measured on the protocol's validation split, never on a test set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from unforge import seeds
from unforge.train.data import Arrays, Member
from unforge.train.distributed import World, gather
from unforge.types import Prediction

TAMPERED = 2


class Validation:
    """What a model predicts, on validation images at their original resolution, decides what is measured:

    - masks: mean pixel F1 at 0.5 over manipulated images;
    - classes (real, generated, tampered): the mean over the classes of the share rightly named;
    - both: the mean of that and of F1 over tampered images (what was generated as a whole is told by its class);
    - a score alone: area under the ROC curve over units (videos, or images), by the mean of each unit's scores;
    - nothing: minus the mean validation loss.

    Images are chosen by a hash of their key, so every run validates on the same ones.
    """

    def __init__(self, members: Sequence[Member], *, count: int | None, size: int) -> None:
        """`count`: how many images (None: all); `size`: side of the centre crop the loss is measured on (pixels).

        Raises ValueError when there is nothing to validate on.
        """
        rows = [(member, key) for member in members for key in member.keys]
        rows.sort(key=lambda row: (seeds.integer(0, row[1], "validation"), row[1]))
        self.rows, self.count, self.size = rows, count, size
        if not rows[:count]:
            raise ValueError("no validation image: give the protocol a validation split, or validation_images above 0")

    def __call__(self, model: nn.Module, world: World) -> tuple[str, float]:
        name = _measured(self._prediction(model, self.rows[0], world.device))
        rows = self.chosen(name)
        found = []
        for place in range(world.rank, len(rows), world.size):
            one = self._loss if name == "negative_loss" else self._judged
            found.append((place, one(model, rows[place], world.device)))
        return name, _value(name, [value for _, value in sorted(gather(found, world), key=lambda pair: pair[0])])

    def chosen(self, name: str) -> list[tuple[Member, str]]:
        """The images that `name` is measured on: manipulated ones for F1 alone, if there are any; else all."""
        rows = [row for row in self.rows if _about(row)["label"] == 1] if name == "pixel_f1@0.5" else []
        return (rows or self.rows)[: self.count]

    def _judged(self, model: nn.Module, row: tuple[Member, str], device: torch.device) -> dict[str, Any]:
        """What is kept of an image: what it is, and of the prediction what there is of `named` class, `f1`, `score`."""
        about, prediction = _about(row), self._prediction(model, row, device)
        assert prediction is not None
        kept = {"unit": about["unit"], "label": int(about["label"]), "true": true_class(about)}
        if prediction.class_probs is not None:
            kept["named"] = int(prediction.class_probs.argmax())
        if prediction.mask is not None:
            kept["f1"] = pixel_f1(prediction.mask, row[0].shards.mask(row[1]))
        if prediction.score is not None:
            kept["score"] = float(prediction.score)
        return kept

    @staticmethod
    def _prediction(model: nn.Module, row: tuple[Member, str], device: torch.device) -> Prediction | None:
        predict = getattr(model, "predict", None)
        if predict is None:
            return None
        image = row[0].shards.image(row[1])
        return predict(torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float().div_(255))

    def _loss(self, model: nn.Module, row: tuple[Member, str], device: torch.device) -> dict[str, Any]:
        about, image, mask = _about(row), row[0].shards.image(row[1]), row[0].shards.mask(row[1])
        y, x = (max(0, (side - self.size) // 2) for side in image.shape[:2])
        window = (slice(y, y + self.size), slice(x, x + self.size))
        arrays = Arrays(
            image=image[window][None].copy(),
            mask=mask[window][None].copy(),
            label=np.array([about["label"]], dtype=np.int64),
            key=(about["key"],),
            unit=(about["unit"],),
            source=(tuple(about["source"]),),
        )
        return {"loss": float(model.loss(arrays.batch(device)).total)}


def _about(row: tuple[Member, str]) -> dict[str, Any]:
    return row[0].shards.row(row[1])


def _measured(prediction: Prediction | None) -> str:
    if prediction is None:
        return "negative_loss"
    if prediction.class_probs is not None:
        return "class_acc@macro" if prediction.mask is None else "class_acc@macro+pixel_f1@tampered"
    if prediction.mask is not None:
        return "pixel_f1@0.5"
    return "negative_loss" if prediction.score is None else "video_auc"


def _value(name: str, judged: Sequence[dict[str, Any]]) -> float:
    """`name` of what was kept of the images."""
    if name == "negative_loss":
        return -float(np.mean([one["loss"] for one in judged]))
    if name == "video_auc":
        return unit_auc([(one["unit"], one["label"], one["score"]) for one in judged])
    if name == "pixel_f1@0.5":
        return float(np.mean([one["f1"] for one in judged]))
    accuracy = macro_accuracy([(one["true"], one["named"]) for one in judged])
    f1 = [one["f1"] for one in judged if "f1" in one and one["true"] == TAMPERED]
    return (accuracy + float(np.mean(f1))) / 2 if f1 else accuracy


def true_class(about: dict[str, Any]) -> int:
    """0 real, 1 generated as a whole, 2 tampered: of a manifest's row."""
    return 0 if about["label"] == 0 else 1 if about["kind"] == "generated" else TAMPERED


def pixel_f1(probability: torch.Tensor, mask: np.ndarray) -> float:
    """F1 of `probability` (1, 1, h, w) > 0.5 against `mask` (H, W), after bilinear resizing to (H, W).

    Two empty masks give 1.
    """
    full = functional.interpolate(probability.float(), size=mask.shape, mode="bilinear", align_corners=False)
    found = full[0, 0].cpu().numpy() > 0.5
    hits, extra, missed = (int(n.sum()) for n in (found & mask, found & ~mask, ~found & mask))
    return 2 * hits / (2 * hits + extra + missed) if hits + extra + missed else 1.0


def macro_accuracy(pairs: Sequence[tuple[int, int]]) -> float:
    """Mean, over the classes that occur, of the share of images rightly named. `pairs`: true class, named class."""
    true, named = np.array(pairs).T
    return float(np.mean([np.mean(named[true == one] == one) for one in np.unique(true)]))


def unit_auc(triples: Sequence[tuple[str, int, float]]) -> float:
    """Area under the ROC curve over units, by the mean of each unit's scores; ties count half. `triples`: unit, label,
    score. A unit is manipulated when one of its images is. ValueError without both kinds."""
    scores: dict[str, list[float]] = {}
    fake = {unit for unit, label, _ in triples if label}
    for unit, _, score in triples:
        scores.setdefault(unit, []).append(score)
    above = np.array([np.mean(values) for unit, values in scores.items() if unit in fake])[:, None]
    below = np.array([np.mean(values) for unit, values in scores.items() if unit not in fake])
    if not above.size or not below.size:
        raise ValueError("validation by scores needs real and fake units: take more validation_images")
    return float(np.mean((above > below) + 0.5 * (above == below)))
