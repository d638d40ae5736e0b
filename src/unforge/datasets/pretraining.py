"""Forgeries of every kind from photographs that nothing else is made of: what forensic backbones learn from."""

from __future__ import annotations

from unforge.types import Card, StandIn

VERSION = "1"

CARD = Card(
    name="forgeries to pretrain on",
    images={},
    licence="that of the photographs; modified, so they may be shown",
    redistribute=True,
    source="made from the photographs of split `pretrain` of `photos`; takes the place of weights that were pretrained "
    "on other data",
    layout="made by the pipeline from installed packages, at any number and size (profile)",
    defects=(
        "the autoencoder that re-renders regions learnt from the same photographs: its traces are a little fainter "
        "here than in the other sets",
    ),
)

STAND_IN = StandIn(
    kinds={
        "authentic": 0.2,
        "splice": 0.2,
        "copy_move": 0.2,
        "removal": 0.15,
        "regenerated": 0.15,
        "generated": 0.1,
    },
    split="pretrain",  # type: ignore[arg-type]  # StandIn names the two splits that sets of papers have
    extension="jpg",
    quality=(86, 98),
    feather=(0.0, 2.5),
    area=(0.02, 0.35),
    donors="polygon",
)
