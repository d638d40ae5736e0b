"""Layers that methods and backbones share. Feature maps are (B,H,W,C) tokens unless a docstring says otherwise."""
