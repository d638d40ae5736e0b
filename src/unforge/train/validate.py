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
    """Mean pixel F1 at 0.5 over manipulated validation images, at their original resolution.

    For a model whose `predict` gives no mask, or that has none, minus the mean validation loss. Images
    are chosen by a hash of their key, so every run validates on the same ones.
    """

    def __init__(self, members: Sequence[Member], *, count: int | None, size: int) -> None:
        """`count`: how many images (None: all); `size`: side of the centre crop the loss is measured on (pixels).

        Raises ValueError when there is nothing to validate on.
        """
        rows = [(member, key) for member in members for key in member.keys]
        rows = [(member, key) for member, key in rows if member.shards.row(key)["label"] == 1] or rows
        rows.sort(key=lambda row: (seeds.integer(0, row[1], "validation"), row[1]))
        self.rows = rows[:count]
        self.size = size
        if not self.rows:
            raise ValueError("no validation image: give the protocol a validation split, or validation_images above 0")

    def __call__(self, model: nn.Module, world: World) -> tuple[str, float]:
        name, values = "negative_loss", []
        for place in range(world.rank, len(self.rows), world.size):
            member, key = self.rows[place]
            image, mask = member.shards.image(key), member.shards.mask(key)
            prediction = self._prediction(model, image, world.device)
            if prediction is None or prediction.mask is None:
                value = -self._loss(model, member.shards.row(key), image, mask, world.device)
            else:
                name, value = "pixel_f1@0.5", pixel_f1(prediction.mask, mask)
            values.append((place, name, value))
        values = sorted(gather(values, world))
        return values[0][1], float(np.mean([value for _, _, value in values]))

    @staticmethod
    def _prediction(model: nn.Module, image: np.ndarray, device: torch.device) -> Prediction | None:
        predict = getattr(model, "predict", None)
        if predict is None:
            return None
        shown = torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float().div_(255)
        return predict(shown)

    def _loss(
        self, model: nn.Module, row: dict[str, Any], image: np.ndarray, mask: np.ndarray, device: torch.device
    ) -> float:
        y, x = (max(0, (side - self.size) // 2) for side in image.shape[:2])
        window = (slice(y, y + self.size), slice(x, x + self.size))
        arrays = Arrays(
            image=image[window][None].copy(),
            mask=mask[window][None].copy(),
            label=np.array([row["label"]], dtype=np.int64),
            key=(row["key"],),
            unit=(row["unit"],),
            source=(tuple(row["source"]),),
        )
        return float(model.loss(arrays.batch(device)).total)


def pixel_f1(probability: torch.Tensor, mask: np.ndarray) -> float:
    """F1 of `probability` (1, 1, h, w) > 0.5 against `mask` (H, W), after bilinear resizing to (H, W).

    Two empty masks give 1.
    """
    full = functional.interpolate(probability.float(), size=mask.shape, mode="bilinear", align_corners=False)
    found = full[0, 0].cpu().numpy() > 0.5
    hits, extra, missed = (int(n.sum()) for n in (found & mask, found & ~mask, ~found & mask))
    return 2 * hits / (2 * hits + extra + missed) if hits + extra + missed else 1.0
