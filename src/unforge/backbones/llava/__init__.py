"""LLaVA: a vision tower (CLIP or SigLIP), a projector and a Llama, through transformers'
`LlavaForConditionalGeneration`.

At small scale the same classes are a few layers each, and the vision tower's patch embedding (a 1x1 convolution there)
reads frozen tokens of the forensic backbone instead of pixels. The small one is pretrained to say, in words, whether
an image is manipulated and where.
"""

from unforge.backbones.llava.answers import (
    FURTHER,
    IMAGE,
    INSTRUCTIONS,
    PLACES,
    QUESTION,
    REAL,
    SHARE,
    SYNTHETIC,
    TAMPERED,
    VERDICTS,
    answer,
    texts,
    three_classes,
    verdict,
)
from unforge.backbones.llava.build import build
from unforge.backbones.llava.config import RECIPE, SMALL, SMALL_SIGLIP, V1_5, Config, Siglip, for_tower
from unforge.backbones.llava.model import IGNORED, MEAN, STD, Answer, Llava, Sequences, States

TRAINED_ON = "pretraining"
NEEDS = ("forensic",)

__all__ = [
    "FURTHER",
    "IGNORED",
    "IMAGE",
    "INSTRUCTIONS",
    "MEAN",
    "NEEDS",
    "PLACES",
    "QUESTION",
    "REAL",
    "RECIPE",
    "SHARE",
    "SMALL",
    "SMALL_SIGLIP",
    "STD",
    "SYNTHETIC",
    "TAMPERED",
    "TRAINED_ON",
    "V1_5",
    "VERDICTS",
    "Answer",
    "Config",
    "Llava",
    "Sequences",
    "Siglip",
    "States",
    "answer",
    "build",
    "for_tower",
    "texts",
    "three_classes",
    "verdict",
]
