"""QTFP: queries that look for forgery among the patches of CLIP, on top of Effort, LoRA or full fine-tuning.

Source: "Beyond [CLS] Token: Query-Driven Token-Level Forgery Purification" (supplement); Effort.
"""

from unforge.methods.qtfp.config import RECIPES, SMALL, VARIANTS, Config
from unforge.methods.qtfp.method import PARTS, TRAINABLE, Qtfp, build

__all__ = ["PARTS", "RECIPES", "SMALL", "TRAINABLE", "VARIANTS", "Config", "Qtfp", "build"]
