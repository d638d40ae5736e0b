"""TamperTok: a multimodal language model that writes the mask as tokens of a codebook.

Source: TamperTok (Kernel Splatting Decoder, Scene-wise Expert Injection); HiMTok for the mask tokens.
"""

from unforge.methods.tampertok.config import RECIPES, SMALL, VARIANTS, Config
from unforge.methods.tampertok.method import TamperTok, build

PARTS = {
    "vision_tower": "model.network.model.vision_tower",
    "projector": "model.network.model.multi_modal_projector",
    "language_model": "model.network.model.language_model",
    "word_head": "model.network.lm_head",
    "injection": "injection",
    "expert": "expert",
    "codebook": "masks",
}
"""Parts that can be counted by themselves, and where they are: see `unforge.counts`.

MACs of the vision tower include those of SwEI (`injection`), which runs behind its layers; of the codebook nothing runs
in the pass that is counted.
"""

__all__ = ["PARTS", "RECIPES", "SMALL", "VARIANTS", "Config", "TamperTok", "build"]
