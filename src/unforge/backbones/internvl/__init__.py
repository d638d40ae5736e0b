"""InternVL2.5 through transformers: a vision tower, a projector and a language model, at the paper's scale and small.

At small scale the same classes run on frozen tokens of the forensic backbone in place of pixels: the vision tower's
patch embedding, a 1x1 convolution there, is the linear layer that takes them in.
"""

from unforge.backbones.internvl.build import architecture, build
from unforge.backbones.internvl.config import SMALL, Config, LoRA
from unforge.backbones.internvl.model import (
    END,
    IGNORED,
    IMAGE,
    MARKS,
    Answers,
    Constraint,
    Encoded,
    Generated,
    InternVL,
    Tiles,
    Turns,
    groups,
    turned,
)

TRAINED_ON = "pretraining"
NEEDS = ("forensic",)

__all__ = [
    "END",
    "IGNORED",
    "IMAGE",
    "MARKS",
    "NEEDS",
    "SMALL",
    "TRAINED_ON",
    "Answers",
    "Config",
    "Constraint",
    "Encoded",
    "Generated",
    "InternVL",
    "LoRA",
    "Tiles",
    "Turns",
    "architecture",
    "build",
    "groups",
    "turned",
]
