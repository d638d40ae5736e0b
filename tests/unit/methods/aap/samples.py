"""Small methods and batches for the tests of AAP."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unforge import methods
from unforge.backbones import llava
from unforge.methods import aap
from unforge.methods.aap.method import CLS, SEG
from unforge.types import Batch

REAL, SYNTHETIC, TAMPERED = llava.REAL, llava.SYNTHETIC, llava.TAMPERED


def build(variant: str = "", **changes: Any) -> aap.AAP:
    torch.manual_seed(0)
    config = dataclasses.replace(methods.config("aap", variant, "small"), **changes)
    return aap.build(config, {}).eval()


def batch(kinds: list[int], size: int = 48) -> Batch:
    torch.manual_seed(5)
    mask = torch.zeros(len(kinds), 1, size, size)
    for i, kind in enumerate(kinds):
        if kind == SYNTHETIC:
            mask[i] = 1
        if kind == TAMPERED:
            mask[i, :, 8:30, 4 : 12 + 4 * i] = 1
    names = tuple(map(str, range(len(kinds))))
    label = torch.tensor([int(kind != REAL) for kind in kinds])
    image = torch.rand(len(kinds), 3, size, size)
    source = tuple((name,) for name in names)
    return Batch(image=image, mask=mask, label=label, key=names, unit=names, source=source)


def upsampled(method: aap.AAP, image: Tensor) -> Tensor:
    with torch.no_grad():
        return F.interpolate(method(image), size=tuple(image.shape[2:]), mode="bilinear")


def cosine_distances(method: aap.AAP, image: Tensor) -> Tensor:
    """Eq. 1 to 3 again, from the parts: frozen tokens against the projected states of the first of two layers."""
    with torch.no_grad():
        shown = method.llava.prepared(image)
        ids = method.llava.sequences([llava.INSTRUCTIONS[1]] * len(image), [f"{CLS} {SEG}"] * len(image)).ids
        middle = method.llava.run(shown, ids, layers=True).layers[1][:, 1 : 1 + 256]
        return 1 - F.cosine_similarity(method.projector(middle), shown.flatten(2).transpose(1, 2), dim=-1)
