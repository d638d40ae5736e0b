"""TamperTok: a multimodal language model that writes the mask as tokens of a codebook.

Source: TamperTok (Kernel Splatting Decoder, Scene-wise Expert Injection); HiMTok for the mask tokens.
"""

from unforge.methods.tampertok.config import RECIPES, SMALL, VARIANTS, Config
from unforge.methods.tampertok.method import TamperTok, build

__all__ = ["RECIPES", "SMALL", "VARIANTS", "Config", "TamperTok", "build"]
