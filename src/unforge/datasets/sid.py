"""The three-class protocol of SID-Set: real, fully synthetic, tampered."""

from __future__ import annotations

from unforge.types import Card

VERSION = "1"

CARD = Card(
    name="SID-Set protocol (three classes)",
    images={},
    licence="that of SID-Set",
    redistribute=False,
    source="SIDA (Huang et al., CVPR 2025); TamperTok, Sec. A.3; train, validation and test 7:1:2.",
    layout="no files of its own: the train and validation images of SID-Set",
    defects=("the classes of the real set differ in file format and size: the header baseline shows what that gives",),
)

MEMBERS: dict[str, int] = {"sidset": 210000}
"""Images per epoch: 7/10 of 300,000, each once."""

VALIDATION = "val"
"""SID-Set's own validation images; the test images are the set `sidset_test`."""
