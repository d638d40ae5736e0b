"""Sizes of LLaVA, at the papers' scale and small."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from unforge.types import Recipe

RECIPE = Recipe(
    source="unforge: what learns within 60 s on one thread",
    optimiser="adamw",
    lr=2e-3,
    min_lr=2e-5,
    batch=8,
    epochs=20,
    samples_per_epoch=120,
    warmup_epochs=1.0,
    weight_decay=0.01,
    clip=1.0,
    ema=0.99,
    augment=("dihedral",),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes. Source: the defaults are CLIP-L/14-224 and Vicuna-7B, on which LISA-7B and SIDA-7B are built."""

    tower: ClassVar[Literal["clip", "siglip"]] = "clip"
    """Kind of the vision tower."""
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    vision_mlp: int = 4096
    image_size: int = 224
    """Side of what the vision tower sees: pixels, or cells of forensic tokens."""
    patch: int = 14
    feature_layer: int = -2
    """Which of the vision tower's hidden states are the image's features; CLIP's class token is dropped."""
    forensic: bool = False
    """Whether the vision tower reads frozen tokens of the forensic backbone instead of pixels."""
    width: int = 4096
    layers: int = 32
    heads: int = 32
    mlp: int = 11008
    vocabulary: int = 32000
    """Rows of the embedding, at least; the tokenizer may need more."""
    positions: int = 2048
    init: float = 0.02
    """Standard deviation of the language model's initial weights."""
    template: str = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: <image>\n{prompt} ASSISTANT:"
    )
    """Source: LLaVA's conversation `v1`. Deviation: without <im_start> and <im_end> around the image, which
    transformers' LLaVA does not have; its projector has two layers where LLaVA-v1 had one."""
    gradient_checkpointing: bool = False
    recipe: Recipe = field(default_factory=lambda: RECIPE)

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return (self.image_size // self.patch) ** 2


@dataclass(frozen=True, kw_only=True)
class Siglip(Config):
    """With a SigLIP tower, which has no class token. Source: the defaults are SigLIP 2 so400m/14-384 and Vicuna-7B.

    ASSUMPTION(paper): AAP names neither size nor resolution of its SigLIP 2, nor how it is put into LLaVA: projector,
    hidden state and language model are those of LLaVA-1.5.
    """

    tower: ClassVar[Literal["clip", "siglip"]] = "siglip"
    vision_width: int = 1152
    vision_layers: int = 27
    vision_mlp: int = 4304
    image_size: int = 384
    positions: int = 4096


V1_5 = Config(image_size=336, positions=4096)
"""LLaVA-1.5-7B: CLIP-L/14-336, 576 image tokens. Source: llava-hf/llava-1.5-7b-hf."""

SMALL = Config(
    vision_width=64,
    vision_layers=2,
    vision_heads=4,
    vision_mlp=128,
    image_size=16,
    patch=1,
    # two layers are too few to leave one out
    feature_layer=-1,
    forensic=True,
    width=96,
    layers=2,
    heads=4,
    mlp=192,
    vocabulary=0,
    positions=512,
    init=0.1,
    template="<image>{prompt}",
)


SMALL_SIGLIP = Siglip(**{item.name: getattr(SMALL, item.name) for item in dataclasses.fields(Config)})
"""As `SMALL`, with the other tower."""


def for_tower(config: Config, kind: str) -> Config:
    """`config` as the class of transformers' vision model `kind`. ValueError for another one."""
    classes: Mapping[str, type[Config]] = {"clip_vision_model": Config, "siglip_vision_model": Siglip}
    if kind not in classes:
        raise ValueError(f"vision tower {kind!r}: {', '.join(classes)} are accepted")
    values: dict[str, Any] = {item.name: getattr(config, item.name) for item in dataclasses.fields(Config)}
    return classes[kind](**values)
