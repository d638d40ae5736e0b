"""Views of the photographs that come with packages: what small tokenizers and priors learn from."""

from __future__ import annotations

from unforge.types import Card, Views

VERSION = "1"

CARD = Card(
    name="views of photographs from packages",
    images={},
    licence="that of the photographs; modified, so they may be shown",
    redistribute=True,
    source="made from `photos`; takes the place of ImageNet's training set for tokenizers of small scale",
    layout="made by the pipeline from installed packages, at any number and size (profile)",
)

STAND_IN = Views(splits={"pretrain": "train", "train": "train", "val": "val"}, extension="png")
"""PNG: what a tokenizer learns should not be JPEG. Photographs of split `test` stay unseen."""
