"""Configurations of InternVL: the paper's and the small one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from unforge.types import Recipe

PAPER = Recipe(
    source="InternVL2.5, stage 2 (full fine-tuning)",
    optimiser="adamw",
    lr=4e-5,
    min_lr=0.0,
    batch=128,
    epochs=1,
    samples_per_epoch=1_000_000,
    warmup_epochs=0.03,
    weight_decay=0.05,
    clip=1.0,
    dtype="bfloat16",
)
QUICK = Recipe(
    source="unforge: what learns within two minutes on one thread",
    optimiser="adamw",
    lr=2e-3,
    min_lr=2e-5,
    batch=16,
    epochs=20,
    samples_per_epoch=800,
    warmup_epochs=1.0,
    weight_decay=0.01,
    clip=1.0,
    # Turns are made of the frozen tokens, which are kept from one time to the next.
    augment=("crop",),
)


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters in the language model. Source of the defaults: SIDA's released code."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")


@dataclass(frozen=True, kw_only=True)
class Config:
    """InternVL2.5-8B: InternViT-300M-448px and InternLM2.5-7B (whose layers are those of Llama).

    ASSUMPTION(paper): sizes are those of the released InternVL2_5-8B; a checkpoint's own configuration overrides them.
    """

    size: int = 448
    """Side of a tile (pixels)."""
    patch: int = 14
    vision_width: int = 1024
    vision_depth: int = 24
    vision_heads: int = 16
    vision_hidden: int = 4096
    layer_scale: float = 0.1
    width: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 8
    hidden: int = 14336
    vocabulary: int = 92553
    """Rows of the embedding; 0: as many as the tokenizer has tokens."""
    positions: int = 32768
    rope: float = 1e6
    norm: float = 1e-5
    tied: bool = False
    max_tiles: int = 12
    thumbnail: bool = True
    system: str = "You are a helpful assistant."
    """ASSUMPTION(paper): system message; empty: none."""
    grid: int = 0
    """Above 0: an image is a map of `grid` x `grid` tokens of the forensic backbone instead of tiles of pixels, and
    `patch` is in cells of that map."""
    initial: float = 0.02
    """Deviation of fresh weights (transformers' default); narrow layers need more to let anything through."""
    spread: float = 0.0
    """Deviation of the learnt positions at the start (a pretrained tower's are loaded)."""
    room: int = 0
    """Bytes of forensic tokens kept from one training step to the next."""
    checkpointing: bool = True
    """Gradient checkpointing in both transformers: their activations are computed again on the way back."""
    imitated: float = 1.0
    """Pretraining samples made of random regions alone, for each sample of an image (small scale)."""
    recipe: Recipe = field(default_factory=lambda: PAPER)


SMALL = replace(
    Config(),
    checkpointing=False,
    size=16,
    patch=2,
    vision_width=96,
    vision_depth=2,
    vision_heads=4,
    vision_hidden=192,
    layer_scale=1.0,
    width=96,
    depth=3,
    heads=4,
    kv_heads=2,
    hidden=192,
    vocabulary=0,
    positions=2048,
    rope=1e4,
    max_tiles=1,
    thumbnail=False,
    system="",
    grid=16,
    initial=0.08,
    spread=0.3,
    room=2**28,
    recipe=QUICK,
)
