"""AAP: the Asymmetric Anchoring Paradigm. A language model's view of authentic images is held to the frozen vision
encoder's, and where it departs from it shows the mask decoder where to look.

Source: AAP; SIDA and LISA for what it builds on.
"""

from unforge.methods.aap.config import RECIPES, SMALL, VARIANTS, Config
from unforge.methods.aap.method import AAP, PARTS, build

__all__ = ["AAP", "PARTS", "RECIPES", "SMALL", "VARIANTS", "Config", "build"]
