"""IML-ViT: a plain ViT at high resolution, a feature pyramid made of its last map, and edge supervision."""

from unforge.methods.imlvit.config import RECIPES, SMALL, VARIANTS, Config
from unforge.methods.imlvit.network import IMLViT, build, load_official

PARTS = {"encoder": "encoder_net", "pyramid": "featurePyramid_net", "head": "predict_head"}
"""Parts of the network that can be counted by themselves, and where they are."""

__all__ = ["PARTS", "RECIPES", "SMALL", "VARIANTS", "Config", "IMLViT", "build", "load_official"]
