"""What methods share in which LLaVA speaks and SAM draws: LISA, SIDA, FakeShield, AAP."""

from __future__ import annotations

from dataclasses import dataclass, field

from unforge.backbones import llava, sam
from unforge.types import Recipe

SMALL_RECIPE = Recipe(
    source="unforge: what learns within 40 s on one thread",
    optimiser="adamw",
    lr=2e-3,
    min_lr=2e-5,
    batch=8,
    epochs=20,
    samples_per_epoch=64,
    warmup_epochs=1.0,
    weight_decay=0.01,
    clip=1.0,
    ema=0.99,
    augment=("dihedral",),
)

PARTS = {
    "vision_tower": "llava.model.model.vision_tower",
    "language_model": "llava.model.model.language_model",
    "sam_encoder": "segmenter.sam.model.vision_encoder",
    "mask_decoder": "segmenter.sam.model.mask_decoder",
}
"""Where there is one LLaVA."""


@dataclass(frozen=True, kw_only=True)
class Grounded:
    """Fields of LISA and of SIDA, which is made from it. Source: released code of each."""

    language: llava.Config = field(default_factory=lambda: llava.Config(gradient_checkpointing=True))
    """Sizes where no backbone is given, as the next."""
    masks: sam.Config = field(default_factory=sam.Config)
    lora_rank: int = 8
    """Of the language model's query and value projections."""
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    dice_scale: float = 1000.0
    """See `sam.dice`."""
    count_size: int = 1024
