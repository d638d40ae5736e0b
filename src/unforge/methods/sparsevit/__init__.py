"""SparseViT: sparse self-attention and learnable feature fusion for manipulation localisation."""

from unforge.methods.sparsevit.config import RECIPES, SMALL, VARIANTS, Config
from unforge.methods.sparsevit.network import SparseViT, build
from unforge.methods.sparsevit.official import load_official

PARTS = {"head": "lmu"}
"""Parts of the network that can be counted by themselves, and where they are."""

__all__ = ["PARTS", "RECIPES", "SMALL", "VARIANTS", "Config", "SparseViT", "build", "load_official"]
