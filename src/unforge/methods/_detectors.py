"""What CNNSpot, FreDect, Gram-Net and NPR share."""

from __future__ import annotations

from unforge.types import Recipe

SMALL_RECIPE = Recipe(
    source="unforge: what fits into 15 s on one thread",
    optimiser="adamw",
    lr=3e-3,
    min_lr=3e-5,
    batch=8,
    epochs=1,
    samples_per_epoch=1600,
    warmup_epochs=0.1,
    weight_decay=0.01,
    clip=1.0,
    augment=("dihedral",),
)
