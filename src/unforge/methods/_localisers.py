"""What IML-ViT, MVSS-Net, PSCC-Net and SparseViT share."""

from __future__ import annotations

from unforge.types import Recipe

CODE_AUGMENT = (
    "scale",
    "copy_move",
    "inpaint",
    "flip_horizontal",
    "flip_vertical",
    "brightness_contrast",
    "jpeg",
    "rotate90",
    "blur",
)
"""Operations before training as the released code of IML-ViT and of SparseViT applies them, in its order."""

SMALL_RECIPE = Recipe(
    source="ours: what learns in some hundred steps on one CPU thread",
    optimiser="adamw",
    lr=3e-3,
    min_lr=3e-5,
    batch=8,
    epochs=1,
    samples_per_epoch=3200,
    warmup_epochs=0.1,
    weight_decay=0.01,
    clip=1.0,
    ema=0.99,
    augment=("flip_horizontal", "flip_vertical", "rotate90"),
)
