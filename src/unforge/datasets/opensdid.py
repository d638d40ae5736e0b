"""The protocol of OpenSDID: learnt on images of one generator, tested on those of five."""

from __future__ import annotations

from unforge.types import Card

VERSION = "1"

CARD = Card(
    name="OpenSDID protocol (train on SD1.5, test on five generators)",
    images={},
    licence="that of OpenSDID",
    redistribute=False,
    source="Wang et al.: OpenSDI, CVPR 2025; AAP, Tables 2 and 5.",
    layout="no files of its own: the training images are the set `opensdid_train`, the test images `opensdid_sd15`, "
    "`opensdid_sd21`, `opensdid_sdxl`, `opensdid_sd3` and `opensdid_flux`",
    defects=("AAP says that it has three classes; its labels have two, and the third is read off the keys",),
)

MEMBERS: dict[str, int] = {"opensdid_train": 200000}
"""Images per epoch: each once."""

VALIDATION = "val"
"""ASSUMPTION(paper): no validation images are published; a twentieth of the training images, by photograph."""
