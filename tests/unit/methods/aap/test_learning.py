"""AAP on a toy case: classes, masks, and where the anchor is left."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.methods.aap.samples import build
from unforge.backbones import llava
from unforge.types import Batch

REAL, SYNTHETIC, TAMPERED = llava.REAL, llava.SYNTHETIC, llava.TAMPERED


def toy(seed: int, count: int) -> Batch:
    """Dark images; tampered: a bright square; synthetic: bright everywhere."""
    torch.manual_seed(seed)
    kinds = [(REAL, SYNTHETIC, TAMPERED)[i % 3] for i in range(count)]
    mask = torch.zeros(count, 1, 64, 64)
    for i, kind in enumerate(kinds):
        y, x = (8 * torch.randint(0, 5, (2,))).tolist()
        if kind == SYNTHETIC:
            mask[i] = 1
        if kind == TAMPERED:
            mask[i, :, y : y + 32, x : x + 32] = 1
    image = 0.2 * torch.rand(count, 3, 64, 64) + 0.8 * mask
    names = tuple(map(str, range(count)))
    label = torch.tensor([int(kind != REAL) for kind in kinds])
    return Batch(image=image, mask=mask, label=label, key=names, unit=names, source=tuple((n,) for n in names))


def test_it_learns_classes_masks_and_where_the_anchor_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    one = build().train()

    def bright(image: Tensor) -> Tensor:
        """Tokens that see what is bright, in the place of the forensic ones."""
        cells = F.adaptive_avg_pool2d(image.mean(1, keepdim=True), (16, 16))
        return torch.cat([torch.ones_like(cells), 2 * cells, cells.new_zeros(len(cells), 31, 16, 16)], dim=1)

    monkeypatch.setattr(one.llava, "prepared", bright)
    optimise = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=3e-3)
    known, held = toy(1, 9), toy(2, 12)
    for _ in range(20):
        one.loss(known).total.backward()
        optimise.step()
        optimise.zero_grad()
    one.eval()
    found = one.predict(held.image, extras=True)
    kinds = llava.three_classes(held.label, held.mask)
    assert (found.class_probs.argmax(1) == kinds).float().mean() >= 0.75
    tampered = kinds == TAMPERED
    inside = held.mask[tampered] > 0
    overlap = ((found.mask[tampered] > 0.5) & inside).sum() / ((found.mask[tampered] > 0.5) | inside).sum()
    assert overlap > 0.5
    errors = F.interpolate(found.extras["attention_last"][:, 0], size=(64, 64), mode="bilinear")[tampered]
    assert errors[inside].mean() > 2 * errors[~inside].mean()
    away = found.signals["deviation"]
    assert away[tampered].mean() > away[kinds == REAL].mean()
