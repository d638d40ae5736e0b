"""What a small LLaVA is asked and says: whether an image is manipulated, and where on a 3x3 grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unforge import explanations
from unforge.backbones import words

IMAGE = "<image>"

REAL, SYNTHETIC, TAMPERED = 0, 1, 2
"""Classes of images, in the order of `class_probs`."""
QUESTION = "Is this image manipulated, and where?"
INSTRUCTIONS = (
    QUESTION,
    "Is this image real, fully synthetic or tampered?",
    "Please segment the manipulated region in this image.",
)
"""What a small model knows the words of, as prompts."""
VERDICTS = ("The image is real.", "The image is fully synthetic.", "The image is tampered at")
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))
"""Cells of a 3x3 grid over the image, row by row."""
FURTHER = ("It is . , Sure", "The image may be edited or generated. Suspected", "[ ] : ;")
"""Words beyond those, for methods' answers."""
SHARE = 0.25
"""A place is named when at least this share of its cell is manipulated, or when no other has more."""


def three_classes(label: Tensor, mask: Tensor) -> Tensor:
    """(B,) of `REAL`, `SYNTHETIC`, `TAMPERED`: label 0; label 1 with a mask of ones everywhere; everything else."""
    everywhere = mask.flatten(1).min(dim=1).values > 0.5
    tampered = torch.where(everywhere, SYNTHETIC, TAMPERED)
    return torch.where(label == 0, REAL, tampered)


def answer(kind: int, mask: Tensor) -> str:
    """What is to be said of an image of class `kind` with `mask` (1,H,W)."""
    if kind != TAMPERED:
        return VERDICTS[kind]
    shares = F.adaptive_avg_pool2d(mask[None].float(), 3).flatten()
    named = [place for place, share in zip(PLACES, shares.tolist(), strict=True) if share >= SHARE]
    return f"{VERDICTS[TAMPERED]} {', '.join(named or [PLACES[int(shares.argmax())]])}."


def verdict(text: str) -> int | None:
    """The class an answer names: the first of the words real, synthetic, tampered in it; None without any."""
    known = {"real": REAL, "synthetic": SYNTHETIC, "tampered": TAMPERED}
    said = [known[piece.strip().lower()] for piece in words.pieces(text) if piece.strip().lower() in known]
    return said[0] if said else None


def texts() -> list[str]:
    """All that the small tokenizer knows the words of."""
    return [*INSTRUCTIONS, *VERDICTS, *PLACES, *FURTHER, *explanations.vocabulary()]
