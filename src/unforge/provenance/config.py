"""Settings of token search, LatentTracer and inverse decoders. Defaults are the paper's. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from unforge.types import Recipe

if TYPE_CHECKING:
    from unforge.tokenizers.base import InverseRecipe

EPS = 1e-10
"""Added to both errors of calibrated EncLoss. Source: released code (`signals.py`)."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """QuantLoss Opt. Source: iar_provenance, Alg. 3; released code (`configs/var.yaml`)."""

    iterations: int = 200
    """Optimiser steps of each round; 6 rounds make the paper's 1,200."""
    lr: float = 0.1
    """Adam, default betas."""
    eps: float = 1e-8
    """Of Adam."""
    start: float = 0.5
    """Logit of the token a round begins with; all others are 0."""
    temperature: tuple[float, float] = (2.0, 0.5)
    """First and last temperature of a round, geometric in between."""
    freeze: tuple[int, ...] | None = None
    """Scale (from 0) from which on tokens are fixed, for each round after the first; None: from the finest down to
    half of them, which is 9, 8, 7, 6, 5 of VAR's ten. ASSUMPTION(paper): that rule for other numbers of scales."""
    faithful: bool = True
    """As published: what the search found counts, even where it is worse than the greedy tokens. False: per image
    the better of the two."""
    memory: int = 800 * 2**20
    """Bytes a batch may take (0.78 GiB); more images are searched one batch after the other."""

    def rounds(self, scales: int) -> tuple[int, ...]:
        """For each round, how many scales (the coarse ones) are searched. ValueError for a scale that is not there."""
        later = self.freeze if self.freeze is not None else tuple(range(scales - 1, scales // 2 - 1, -1))
        wrong = [scale for scale in later if not 0 < scale < scales]
        if wrong:
            raise ValueError(f"freeze {wrong}: a tokenizer of {scales} scales accepts 1 to {scales - 1}")
        return (scales, *later)


@dataclass(frozen=True, kw_only=True)
class Tracer:
    """LatentTracer: Adam on a latent until its image is the suspicious one.

    The paper's two sources disagree on the learning rate; `TRACERS` holds both, and the original of the method.
    """

    iterations: int = 100
    lr: float = 1e-2
    halve: tuple[int, ...] = (50, 100)
    """The learning rate halves after this many steps."""
    begin: Literal["quantized", "encoded"] = "quantized"
    """The latent at first: f_Z or f."""
    score: Literal["last", "lowest"] = "last"
    """Error of the last step, measured before it, or the lowest of all."""


TRACERS: dict[str, Tracer] = {
    "release": Tracer(),
    "script": replace(Tracer(), halve=(1, 51)),
    "original": replace(Tracer(), lr=5e-2, halve=(1, 51), begin="encoded", score="lowest"),
}
"""`release`: released code (`dataprov/baselines.py`). `script`: its `latenttracer.py` for LlamaGen, where the rate
halves at i % 50 == 0, at once and again. `original`: Wang et al. 2024, released code."""


def recipe(inverse: InverseRecipe, samples: int = 1000) -> Recipe:
    """A family's recipe for its inverse decoder as the training loop takes it; `samples`: generated images.

    ASSUMPTION(paper): 1,000 images, the default of the released `generate_data.py`; the paper does not say.
    Deviation: the released code multiplies the learning rate by 0.9 every second epoch; the loop's half cosine
    falls to the same last value.
    """
    return Recipe(
        source=inverse.source,
        optimiser="adam",
        lr=inverse.lr,
        min_lr=inverse.lr * inverse.decay ** ((inverse.epochs - 1) // inverse.decay_every),
        batch=inverse.batch,
        epochs=inverse.epochs,
        samples_per_epoch=samples,
        betas=inverse.betas,
    )


SCHEDULE: tuple[tuple[str, int], ...] = (("none", 5), ("weak", 5), ("medium", 20), ("strong", 20))
"""Strengths of the augmented variant and their epochs, of 50; a run of another length keeps the shares.
Source: iar_provenance, Table A2 (RAR and Taming); released code, `configs/rar.yaml`."""

LEVELS: dict[str, dict[str, tuple[float, ...]]] = {
    "weak": {
        "jpeg": (90, 85, 80),
        "blur": (1, 3),
        "noise": (0.005, 0.01, 0.02),
        "brightness": (1.0, 1.1, 1.2),
        "saturation": (1.0, 1.2, 1.5),
        "resize": (0.9, 0.85, 0.8),
        "contrast": (1.0, 1.2, 1.5),
    },
    "medium": {
        "jpeg": (80, 75, 70, 65),
        "blur": (3, 5),
        "noise": (0.02, 0.03, 0.04),
        "brightness": (1.3, 1.4, 1.5),
        "saturation": (1.5, 1.7, 2.0),
        "resize": (0.8, 0.75, 0.7),
        "contrast": (1.5, 1.7, 2.0),
    },
    "strong": {
        "jpeg": (60, 55, 50),
        "blur": (5, 7, 9),
        "noise": (0.03, 0.04, 0.05),
        "brightness": (1.5, 1.7, 2.0),
        "saturation": (2.0, 2.2, 2.5),
        "resize": (0.7, 0.6, 0.5),
        "contrast": (2.0, 2.2, 2.4),
    },
}
"""What a strength may do to an image: quality 0-100, kernel in pixels (1: none), sigma in [0,1], factors.
Source: iar_provenance, Table A2; released code, `augmentations.py`."""

OURS: dict[str, str] = {"infinity": "quant_loss", "var": "combined_opt"}
"""The signal that the paper calls its own for a model, with an inverse decoder; `combined` for all others. Source:
iar_provenance, Table 3 (on test data: the choice has seen what it is measured on)."""


def ours(model: str) -> str:
    """Name of the signal the paper uses for a model."""
    return OURS.get(model, "combined")


ENCODERS = ("own", "inverse", "augmented")
"""What brings an image to features: the tokenizer's own encoder, its inverse decoder, and that trained on perturbed
images."""


def label(model: str, encoder: str) -> str:
    """Name of an inverse decoder: `rar`, `rar_augmented`. ValueError for an encoder that is none."""
    if encoder not in ENCODERS[1:]:
        raise ValueError(f"{encoder!r} is no inverse decoder: there is {', '.join(ENCODERS[1:])}")
    return f"{model}_augmented" if encoder == "augmented" else model
