"""PSCC-Net: masks from coarse to fine with spatio-channel correlation, and a detection head."""

from unforge.methods.psccnet.config import RECIPES, SMALL, VARIANTS, Config
from unforge.methods.psccnet.network import PSCCNet, build, load_official

PARTS = {"trunk": "trunk", "localisation": "localisation", "detection": "detection"}
"""Parts of the network that can be counted by themselves, and where they are."""

__all__ = ["PARTS", "RECIPES", "SMALL", "VARIANTS", "Config", "PSCCNet", "build", "load_official"]
