"""TamperTok's training protocol: four sets, generative inpainting among them."""

from __future__ import annotations

from unforge.types import Card

VERSION = "1"

CARD = Card(
    name="TamperTok protocol (four sets)",
    images={},
    licence="those of its members",
    redistribute=False,
    source="TamperTok, Sec. 4.1.1: TamperCOCO, MIML, CASIA2 and the tampered images of SID-Set.",
    layout="no files of its own: made of tampCOCO, MIML, CASIA v2 and the tampered part of SID-Set",
    defects=(
        "the paper's expert SparseViT was trained on IMD2020 (CAT-Net protocol), which is a test set here: an expert "
        "must be trained on this protocol instead",
        "CocoGlide is made of COCO val2017, tampCOCO and SID-Set's tampered images of COCO too: what shares a "
        "photograph with a test image is left out",
    ),
)

MEMBERS: dict[str, int] = {
    "casia2": 1840,
    "miml": 1840,
    "sidset/tampered": 1840,
    "tampcoco/bcm": 460,
    "tampcoco/bcmc": 460,
    "tampcoco/cm": 460,
    "tampcoco/sp": 460,
}
"""Images per epoch of each set; only their proportion counts.

ASSUMPTION(paper): Sec. A.2 says "data resampling" and gives no numbers: the four sets have equal shares, 1,840 as in
the CAT-Net protocol, and tampCOCO's is divided among its parts.
"""

VALIDATION = "val"
"""The checkpoint is selected on this split of the members, never on a test set."""
