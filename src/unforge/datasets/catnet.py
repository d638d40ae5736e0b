"""The CAT-Net training protocol as SparseViT uses it: seven sets, 1,840 images of each per epoch."""

from __future__ import annotations

from unforge.types import Card

VERSION = "1"

CARD = Card(
    name="CAT-Net protocol (seven sets)",
    images={},
    licence="those of its members",
    redistribute=False,
    source="SparseViT, Sec. 4.1 and the released list of data sets; CAT-Net v2 (Kwon et al., IJCV 2022). "
    "CAT-Net also has sets of authentic images only (FR_auth, CASIA_auth, compRAISE), which SparseViT leaves out.",
    layout="no files of its own: made of CASIA v2, FantasticReality, IMD2020 and the four parts of tampCOCO",
    defects=(
        "'trained on CAT-Net data' is ambiguous: this is the seven-set reading, 12,880 images per epoch",
        "SparseViT selects its checkpoint on CASIA v1, a test set: here the `val` split of the members selects",
    ),
)

MEMBERS: dict[str, int] = {
    "casia2": 1840,
    "fantasticreality": 1840,
    "imd2020": 1840,
    "tampcoco/bcm": 1840,
    "tampcoco/bcmc": 1840,
    "tampcoco/cm": 1840,
    "tampcoco/sp": 1840,
}
"""Images per epoch, drawn anew each epoch, of each set; `dataset/part` is the images with `meta["part"] == part`."""

VALIDATION = "val"
"""The checkpoint is selected on this split of the members, never on a test set."""
