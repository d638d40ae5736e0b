"""Configurations of TamperTok: the paper's, the small one and the ablation rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from unforge import masks
from unforge.backbones import internvl
from unforge.types import Recipe

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        source="TamperTok, A.2",
        optimiser="adamw",
        lr=2e-5,
        # ASSUMPTION(paper): half cosine to 0 after 3 % of warm-up, batch 128, one epoch, bfloat16, gradients clipped
        # at 1, as HiMTok's last stage, whose weights the method starts from; the paper gives none of these.
        min_lr=0.0,
        batch=128,
        epochs=1,
        samples_per_epoch=200_000,
        warmup_epochs=0.03,
        weight_decay=0.05,
        clip=1.0,
        dtype="bfloat16",
        # ASSUMPTION(paper): colour jitter is a change of brightness and contrast; flips in both directions.
        augment=("flip_horizontal", "flip_vertical", "brightness_contrast"),
    ),
    "small": Recipe(
        source="ours: what learns in some hundred steps on one CPU thread",
        optimiser="adamw",
        lr=2e-3,
        min_lr=2e-5,
        batch=16,
        epochs=20,
        samples_per_epoch=160,
        warmup_epochs=1.0,
        weight_decay=0.01,
        clip=1.0,
        # Turns are made of the frozen features, which are kept from one step to the next.
        augment=("crop",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """TamperTok at the paper's scale."""

    fusion: Literal["swei", "dimension", "sequence", "none"] = "swei"
    """How the expert's features get in. Source: TamperTok, Table 3."""
    expert: Literal["sparsevit", "mvssnet", "psccnet"] = "sparsevit"
    """Source: TamperTok, Table 5. Its weights are frozen (ASSUMPTION(paper))."""
    maps: tuple[str, ...] = ()
    """Names of the expert's shallow and deep map; empty: the first and the last of its `features`.
    ASSUMPTION(paper): SparseViT's `third1` (320 channels at 1/16) and `last` (512 at 1/32)."""
    layers: tuple[int, ...] = (6, 12, 18, 24)
    """Vision layers (from 1) behind which SwEI acts. ASSUMPTION(paper): "each stage"; every sixth of 24."""
    swei_ratio: float = 4.0
    """Hidden width of SwEI's FFN over the vision tower's. ASSUMPTION(paper): that of a transformer."""
    swei_lr: float = 2.0
    """Learning rate of whatever takes in the expert, over the base rate. Source: TamperTok, A.2 (4e-5, 2e-5)."""
    k: int = 10
    """Codes of a neighbourhood; 1: cross-entropy. Source: TamperTok, Table 4."""
    temperature: float = 0.02
    """Of KSD's weights; see `masks.splatting`."""
    neighbourhood: Literal["topk", "centroid"] = "topk"
    decode: Literal["soft", "hard"] = "soft"
    """`soft`: the mean code under softmax(`sharpness` x logits); `hard`: the best code. Source: HiMTok."""
    sharpness: float = 2.0
    """Source: HiMTok, released code."""
    constrained: bool = True
    """Whether generation is held to well-formed mask tokens. Ours; False: what is malformed gives an empty mask."""
    explained: bool = False
    """Whether answers explain before they show the mask (asset `explanations`). Source: TamperTok, Sec. A.5."""
    weight_text: float = 1.0
    weight_ksd: float = 1.0
    weight_localisation: float = 1.0
    """ASSUMPTION(paper): "a combination of the LLM supervision loss, the KSD loss, and the localization loss"
    without weights; the localisation loss is read as that of the softly decoded mask."""
    dice: float = 0.25
    """Weight of Dice beside binary cross-entropy in the localisation loss. Source: HiMTok, released code."""
    imitated: float = 0.0
    """Training samples made of masks alone, for each sample of an image. Ours, for the small scale: 0 elsewhere."""
    limit: int = 768
    """Most tokens of an answer."""
    lora: internvl.LoRA | None = None
    """None: all weights of the language model are trained. Source: TamperTok, A.2 ("fully fine-tuning")."""
    internvl: internvl.Config = field(default_factory=lambda: replace(internvl.Config(), max_tiles=4))
    """When no pretrained backbone is given. ASSUMPTION(paper): up to 4 tiles, as HiMTok's last stage."""
    masks: masks.Config = field(default_factory=masks.Config)
    """When no trained codebook is given."""
    room: int = 0
    """Bytes of the expert's features kept from one training step to the next."""
    sharded: bool = True
    """Whether parameters are spread over the processes of a run (`train/sharded.py`); one process has them all."""
    input_size: int | None = 448
    count_size: int = 448
    recipe: Recipe = field(default_factory=lambda: RECIPES["paper"])


SMALL = replace(
    Config(),
    layers=(1, 2),
    swei_ratio=1.0,
    temperature=0.05,
    imitated=1.0,
    limit=200,
    internvl=internvl.SMALL,
    masks=masks.SMALL,
    room=2**28,
    sharded=False,
    input_size=None,
    recipe=RECIPES["small"],
)


def _variants() -> dict[str, Config]:
    full = Config()
    plain = replace(full, k=1)
    return {
        "": full,
        "cbd": replace(plain, fusion="none"),
        "swei": plain,
        "k5": replace(full, k=5),
        "k20": replace(full, k=20),
        "dimension": replace(full, fusion="dimension"),
        "sequence": replace(full, fusion="sequence"),
        "mvss": replace(full, expert="mvssnet"),
        "pscc": replace(full, expert="psccnet"),
        "hard": replace(full, decode="hard"),
        "free": replace(full, constrained=False),
        "centroid": replace(full, neighbourhood="centroid"),
        "explained": replace(full, explained=True),
    }


VARIANTS: dict[str, Config] = _variants()
"""Rows of Tables 2 to 5, "" the full method; `cbd` is No. 2 of Table 2, `swei` its No. 3 and K = 1. Ours: `hard` (of
the full method's weights), `free` (of the same, unconstrained), `centroid` (clusters of k-means). `explained`: A.5."""
