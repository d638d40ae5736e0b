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


class Validation:
    """What a model predicts, on validation images at their original resolution, decides what is measured:

    - masks: mean pixel F1 at 0.5 over manipulated images; where classes are predicted too, over those of them that
      were not generated as a whole, which are told by their class;
    - classes (real, generated, tampered) without masks: the mean over the classes of the share rightly named;
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
            found.append((place, self._one(name, model, rows[place], world.device)))
        values = [value for _, value in sorted(gather(found, world))]
        if name == "class_acc@macro":
            return name, macro_accuracy(values)
        return name, unit_auc(values) if name == "video_auc" else float(np.mean(values))

    def chosen(self, name: str) -> list[tuple[Member, str]]:
        """The images that `name` is measured on; all of them where there is none of the kind it asks for."""
        wanted = {"pixel_f1@0.5": (1, 2), "pixel_f1@tampered": (2,)}.get(name, (0, 1, 2))
        return ([row for row in self.rows if true_class(_about(row)) in wanted] or self.rows)[: self.count]

    def _one(self, name: str, model: nn.Module, row: tuple[Member, str], device: torch.device) -> Any:
        """What is kept of an image: its F1 or loss; true and named class; or unit, label and score."""
        if name == "negative_loss":
            return -self._loss(model, row, device)
        about, prediction = _about(row), self._prediction(model, row, device)
        assert prediction is not None
        if prediction.mask is not None:
            return pixel_f1(prediction.mask, row[0].shards.mask(row[1]))
        if prediction.class_probs is not None:
            return true_class(about), int(prediction.class_probs.argmax())
        assert prediction.score is not None
        return about["unit"], int(about["label"]), float(prediction.score)

    @staticmethod
    def _prediction(model: nn.Module, row: tuple[Member, str], device: torch.device) -> Prediction | None:
        predict = getattr(model, "predict", None)
        if predict is None:
            return None
        image = row[0].shards.image(row[1])
        return predict(torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float().div_(255))

    def _loss(self, model: nn.Module, row: tuple[Member, str], device: torch.device) -> float:
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
        return float(model.loss(arrays.batch(device)).total)


def _about(row: tuple[Member, str]) -> dict[str, Any]:
    return row[0].shards.row(row[1])


def _measured(prediction: Prediction | None) -> str:
    if prediction is None:
        return "negative_loss"
    if prediction.mask is not None:
        return "pixel_f1@0.5" if prediction.class_probs is None else "pixel_f1@tampered"
    if prediction.class_probs is not None:
        return "class_acc@macro"
    return "negative_loss" if prediction.score is None else "video_auc"


def true_class(about: dict[str, Any]) -> int:
    """0 real, 1 generated as a whole, 2 tampered: of a manifest's row."""
    return 0 if about["label"] == 0 else 1 if about["kind"] == "generated" else 2


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
