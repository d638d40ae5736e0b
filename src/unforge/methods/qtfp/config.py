"""Configurations of QTFP: the paper's, the small one, and the rows of its tables and curves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from unforge.backbones import clip
from unforge.types import Recipe

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        source="QTFP, implementation details, on the released configuration of Effort",
        optimiser="adam",
        lr=2e-4,
        # no schedule
        min_lr=2e-4,
        batch=16,
        epochs=10,
        # 3,600 training videos of FaceForensics++ (c23), 8 frames each
        samples_per_epoch=28800,
        weight_decay=5e-4,
        # Deviation: DeepfakeBench also turns by up to 10 degrees, resizes there and back, and shifts colours; and its
        # blur, brightness and JPEG have probabilities and ranges of their own.
        augment=("flip_horizontal", "blur", "brightness_contrast", "jpeg"),
    ),
    "small": Recipe(
        source="ours: what learns in some ten seconds on one CPU thread",
        optimiser="adamw",
        lr=2e-3,
        min_lr=2e-5,
        batch=16,
        epochs=20,
        samples_per_epoch=128,
        warmup_epochs=1.0,
        weight_decay=0.01,
        clip=1.0,
        ema=0.99,
        # Turns are made of the frozen tokens, which are kept from one step to the next.
        augment=("crop",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """QTFP on Effort, at the paper's scale."""

    clip: clip.Config = field(default_factory=clip.Config)
    """Sizes where no backbone is given."""
    tuning: Literal["effort", "lora", "full"] = "effort"
    """What of the tower learns. Source: QTFP, supplement, Table 5."""
    rank: int = 1
    """Of Effort's residual. Source: Effort, released code."""
    orthogonality: float = 0.0
    """Weight of Effort's loss that keeps kept and learnt singular directions orthogonal. Source: Effort, released code:
    the paper's two losses are not used."""
    singular: float = 0.0
    """Weight of Effort's loss that keeps the Frobenius norm of each matrix. Source: as above."""
    lora_rank: int = 4
    """On all six matrices of a layer. ASSUMPTION(paper): 1.77 M trained parameters are rank 4 on all six."""
    lora_alpha: float = 8.0
    """ASSUMPTION(paper): not given; twice the rank."""
    lora_dropout: float = 0.0
    """ASSUMPTION(paper): not given; none."""
    classified: Literal["query", "cls", "average", "weighted", "concat"] = "query"
    """What is classified: the queries' mean, the class token, or both. Source: QTFP, supplement, Table 1.
    ASSUMPTION(paper): the learnt weights of `weighted` are a softmax of two numbers that begin equal."""
    queries: int = 2
    """ASSUMPTION(paper): 2, the most that the printed counts allow: cut off and with the head, 4.39 M allow 1 and 2."""
    heads: int = 16
    """Of the queries' attention. ASSUMPTION(paper): as the tower's."""
    spread: float = 0.02
    """Standard deviation of the initial queries. ASSUMPTION(paper): not given."""
    contrast: Literal["flcl", "macl"] = "flcl"
    """Fake-likelihood weights, or masks (oracle). Source: QTFP, supplement, Sec. 2.1."""
    contrast_weight: float = 0.14
    """Source: QTFP."""
    temperature: float = 0.1
    """Of the contrastive loss. ASSUMPTION(paper): not given. At least 0.02, so that nothing overflows."""
    sharpness: float = 0.1
    """Fake-likelihood is sigmoid(difference of similarities / sharpness). ASSUMPTION(paper): neither form nor value are
    given; similarities are cosines, and no gradient flows through the weights."""
    anchors: float = 1.0
    """Share of each image's patches that are anchors of the contrastive loss, drawn anew at each step.
    ASSUMPTION(paper): all, each compared with all patches of the batch. A quarter at small scale: beside a tower of
    four layers all of them are nearly half of a step."""
    forged_share: float = 0.0
    """A patch is forged when more than this share of it is manipulated. ASSUMPTION(paper): any pixel."""
    align: Literal["attention", "token"] = "attention"
    """What is aligned on real images: attention (RAAL) or tokens. Source: QTFP, supplement, Table 4."""
    distance: Literal["kl", "l1", "l2"] = "kl"
    """Between attentions. Source: QTFP, supplement, Sec. 2.3, Eqs. 1-3. ASSUMPTION(paper): of the means over heads, for
    each query by itself; the class token's attention is the tuned tower's own, without gradient."""
    align_weight: float = 1.0
    """Source: QTFP. ASSUMPTION(paper): the same for tokens."""
    turned: bool = False
    """Whether training turns and flips what the tower sees; only where that is frozen tokens. Ours."""
    input_size: int | None = 256
    """Images are resized to this in training, where the profile gives no crop (pixels). Source: DeepfakeBench's frames,
    which are of this size; the tower resizes further."""
    count_size: int = 224
    """Size (pixels) for which parameters and MACs are counted."""
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(Config(), clip=clip.SMALL, heads=4, anchors=0.25, turned=True, input_size=None, recipe=RECIPES["small"])

_FULL = Config()
_CLASS = replace(_FULL, classified="cls", contrast_weight=0.0, align_weight=0.0)
"""The class token and cross-entropy alone."""

VARIANTS: dict[str, Config] = {
    "": _FULL,
    "effort": _CLASS,
    "lora": replace(_CLASS, tuning="lora"),
    "lora_ours": replace(_FULL, tuning="lora"),
    "tuned": replace(_CLASS, tuning="full"),
    "tuned_ours": replace(_FULL, tuning="full"),
    "average": replace(_FULL, classified="average"),
    "weighted": replace(_FULL, classified="weighted"),
    "concat": replace(_FULL, classified="concat"),
    "macl": replace(_FULL, contrast="macl"),
    "raal_l1": replace(_FULL, distance="l1"),
    "raal_l2": replace(_FULL, distance="l2"),
    "no_raal": replace(_FULL, align_weight=0.0),
    "token_alignment": replace(_FULL, align="token"),
    "queries": replace(_FULL, contrast_weight=0.0, align_weight=0.0),
    "flcl_0": replace(_FULL, contrast_weight=0.0),
    "flcl_005": replace(_FULL, contrast_weight=0.05),
    "flcl_030": replace(_FULL, contrast_weight=0.30),
    "flcl_100": replace(_FULL, contrast_weight=1.0),
    "raal_025": replace(_FULL, align_weight=0.25),
    "raal_050": replace(_FULL, align_weight=0.5),
    "raal_200": replace(_FULL, align_weight=2.0),
    "raal_400": replace(_FULL, align_weight=4.0),
}
