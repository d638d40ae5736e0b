"""Which variants stand side by side in the report's galleries, named per paper as its qualitative figures name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Plate:
    """One gallery: the variants that stand beside image and truth."""

    name: str
    """`Figure 5`."""
    title: str
    explanation: str
    variants: dict[str, str]
    """Variant (`""` is the full method; `lisa-full` one of another method than the paper's) to the label over its
    column."""
    protocol: str = ""
    """Whose runs are shown; empty: the paper has one protocol."""
    said: str | None = None
    """Variant whose text about one image is shown."""
    show: Literal["prediction", "attention"] = "prediction"
    overlay: bool = False
    """Each prediction once more, over the image."""
    images: int = 4


PLATES: dict[str, tuple[Plate, ...]] = {
    "sparsevit": (
        Plate(
            name="Figure 4",
            title="attention of one point, dense against sparse",
            explanation="Where the cross, a point inside the manipulated region, looks in the last attention block of "
            "stage 3, mean over heads. Bright is much attention; each picture is scaled to its own maximum.",
            variants={
                "dense": "dense",
                "sparse": "sparse",
                "stem_dense": "dense, with stem (added)",
                "stem_sparse": "sparse, with stem (added)",
            },
            show="attention",
        ),
        Plate(
            name="Figure 5",
            title="SparseViT's prediction beside the truth",
            explanation="White is probability 1 of manipulation. Over the image: predicted region orange, outline of "
            "the truth green. The other models of the paper's figure are not re-run.",
            variants={"": "SparseViT", "stem": "SparseViT, with stem (added)"},
            overlay=True,
            images=7,
        ),
        Plate(
            name="Figure 7",
            title="one sparsity rate against mixed rates",
            explanation="White is probability 1 of manipulation.",
            variants={
                "s2": "S = 2",
                "s4": "S = 4",
                "s8": "S = 8",
                "": "mixed",
                "stem_s2": "S = 2, stem (added)",
                "stem_s4": "S = 4, stem (added)",
                "stem_s8": "S = 8, stem (added)",
                "stem": "mixed, stem (added)",
            },
        ),
        Plate(
            name="Figure 8",
            title="sparse attention against handcrafted extractors",
            explanation="White is probability 1 of manipulation.",
            variants={
                "lff": "LFF",
                "sobel_lff": "Sobel + LFF",
                "bayar_lff": "Bayar + LFF",
                "dct_lff": "DCT + LFF",
                "srm_lff": "SRM + LFF",
                "sparse": "sparse",
                "": "sparse + LFF",
            },
        ),
    ),
    "tampertok": (
        Plate(
            name="Figure 4",
            title="TamperTok beside experts and other language models",
            explanation="White is probability 1 of manipulation. The photographs of the paper's figure are not shown.",
            variants={
                "": "TamperTok",
                "explained": "TamperTok, with explanations",
                "cbd": "codebook only",
                "sparsevit-stem": "SparseViT, with stem (added)",
                "lisa-full": "LISA",
                "sida-full": "SIDA",
                "fakeshield-full": "FakeShield",
            },
            protocol="tampertok",
            said="explained",
            images=6,
        ),
    ),
}
