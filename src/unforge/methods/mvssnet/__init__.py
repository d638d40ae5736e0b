"""MVSS-Net: an edge-supervised RGB branch and a noise branch, joined by dual attention."""

from unforge.methods.mvssnet.config import RECIPES, SMALL, VARIANTS, Config
from unforge.methods.mvssnet.network import MVSSNet, build, load_official

PARTS = {"head": "head"}
"""Parts of the network that can be counted by themselves, and where they are."""

__all__ = ["PARTS", "RECIPES", "SMALL", "VARIANTS", "Config", "MVSSNet", "build", "load_official"]
