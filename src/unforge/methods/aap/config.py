"""Configurations of AAP: the paper's, the small one and the ablation rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from unforge.backbones import llava, llava_large, llava_siglip, sam
from unforge.methods import _grounded
from unforge.types import Recipe

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        source="AAP, Sec. 4.1",
        optimiser="adam",
        lr=1e-4,
        # "a fixed learning rate"
        min_lr=1e-4,
        batch=16,
        epochs=20,
        # ASSUMPTION(paper): an epoch is the training split of SID-Set, 7/10 of 300,000, on OpenSDID too
        samples_per_epoch=210_000,
        # ASSUMPTION(paper): as LISA and SIDA
        dtype="bfloat16",
    ),
    "small": replace(_grounded.SMALL_RECIPE, source="unforge: what learns within 15 s on one thread"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """AAP-lisa at the paper's scale."""

    base: Literal["lisa", "llava", "llava_siglip", "llava_large"] = "lisa"
    """What it starts from; without trained weights, the sizes. Source: AAP, Sec. 4.1, Table 7."""
    small: bool = False
    """Whether those sizes are the small ones."""
    anchored: tuple[str, ...] = ("real",)
    """Classes whose images are held to the anchor: of `real`, `synthetic`, `tampered`. Source: AAP, Eq. 2, Table 6.
    Empty: neither projector nor map, the black box of Table 7."""
    error_map: bool = True
    """Whether the error map reaches the mask decoder. Source: AAP, Table 8."""
    control: bool = False
    """Whether the anchor is another frozen network instead of the vision encoder (asset `anchor`). Ours."""
    layer: int | None = None
    """Layer of the language model whose image tokens are held to the anchor, from 1; None: half of all.
    ASSUMPTION(paper): "a middle layer"."""
    epsilon: float = 1e-8
    """Of Eq. 2 and 3. ASSUMPTION(paper): not given."""
    cue_width: int = 32
    """Channels within the projection of the error map. ASSUMPTION(paper): "lightweight"."""
    lora_rank: int = 8
    """ASSUMPTION(paper): SIDA's; not given."""
    lora_alpha: float = 16.0
    """Source: AAP, Sec. 4.1, as the next."""
    lora_dropout: float = 0.05
    train_words: bool = True
    """Whether the embeddings of words learn too. ASSUMPTION(paper): as in SIDA; two of them are new."""
    weight_cls: float = 1.0
    """Source: AAP, Sec. 4.1, as the next two."""
    weight_seg: float = 1.0
    weight_arl: float = 3.0
    ce: float = 0.0
    """Weight of the answer's cross-entropy; above 0, answers say in words what the image is, and where.
    ASSUMPTION(paper): Eq. 8 has no such term, and how Figure 5 was made is not said."""
    answer_lr: float = 1.0
    """Learning rate of the language model's last layer, which learns where `ce` is above 0, over the base rate. Ours,
    for the small scale: 1 elsewhere."""
    dice_scale: float = 1000.0
    """Source: LISA, released code (see `sam.dice`)."""
    answer_tokens: int = 128
    """Longest answer that is generated."""
    input_size: int | None = 1024
    """Images are resized to this square (pixels). Source: AAP, Sec. 4.1. None: training images have the profile's size,
    and pixel encoders are shown a square as long as the image's longer side."""
    count_size: int = 1024
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(Config(), small=True, answer_lr=10.0, answer_tokens=32, input_size=None, recipe=RECIPES["small"])

_BLACK_BOX = replace(Config(), anchored=(), error_map=False)

VARIANTS: dict[str, Config] = {
    "": Config(),
    "black_box": _BLACK_BOX,
    "symmetric": replace(Config(), anchored=("real", "tampered")),
    "no_map": replace(Config(), error_map=False),
    "control": replace(Config(), control=True),
    "control_symmetric": replace(Config(), control=True, anchored=("real", "tampered")),
    "control_no_map": replace(Config(), control=True, error_map=False),
    "llava": replace(Config(), base="llava"),
    "llava_black_box": replace(_BLACK_BOX, base="llava"),
    "siglip": replace(Config(), base="llava_siglip"),
    "siglip_black_box": replace(_BLACK_BOX, base="llava_siglip"),
    "large": replace(Config(), base="llava_large"),
    "large_black_box": replace(_BLACK_BOX, base="llava_large"),
    "explained": replace(Config(), ce=1.0),
}
"""Rows of Tables 6 to 8, "" AAP-lisa and `llava` AAP-llava; `control` and its two are ours. `explained`: Figure 5."""


def sizes(config: Config) -> tuple[llava.Config, sam.Config]:
    """Sizes of LLaVA and SAM where no trained ones are given.

    ASSUMPTION(paper): LISA-7B-v1 sees 224 px as published, the others what their own encoders do.
    """
    module = {"llava_siglip": llava_siglip, "llava_large": llava_large}.get(config.base, llava)
    if config.small:
        return module.SMALL, sam.SMALL
    paper = llava.V1_5 if config.base == "llava" else module.Config()
    return replace(paper, gradient_checkpointing=True), sam.Config()
