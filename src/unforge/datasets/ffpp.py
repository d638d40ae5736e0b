"""The protocol of deepfake detection across data sets: learnt on FaceForensics++ c23, tested on eleven others."""

from __future__ import annotations

from unforge.types import Card

VERSION = "1"

CARD = Card(
    name="FaceForensics++ protocol (train on c23, test elsewhere)",
    images={},
    licence="that of FaceForensics++",
    redistribute=False,
    source="DeepfakeBench; QTFP, Sec. 4: 8 frames of each training video, 32 of each test video.",
    layout="no files of its own: the training videos are the set `faceforensics`, the test videos `cdf_v1`, `cdf_v2`, "
    "`faceshifter`, `uadfv`, `dfd`, `dfdc`, `dfdcp`, `deeperforensics`, `wilddeepfake`, `ffiw` and `uniface`",
    defects=(
        "DeepfakeBench keeps the checkpoint that is best on each test set (issue 91): it is chosen on the validation "
        "split of FaceForensics++ here",
    ),
)

MEMBERS: dict[str, int] = {"faceforensics": 28800}
"""Images per epoch: 8 frames of each of 720 real and 4 x 720 fake videos, each once."""

VALIDATION = "val"
"""The official validation split: 140 real and 4 x 140 fake videos, none of whose persons is learnt from."""
