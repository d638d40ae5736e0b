"""FreDect: the logarithm of an image's cosine transform, each coefficient standardised, and a classifier of it.

The default is AIGCDetectBenchmark's, a ResNet-50, as papers that print a row "FreDect" cite such a benchmark. The
variant `ridge` is the original's logistic regression.

Mean and variance of each coefficient are those of the training images seen so far; they are in the state dict, and
nothing else is ever added to them. Deviation: the originals compute them beforehand, over the whole training set.

Source: Frank et al., ICML 2020 (MIT), and facts of the benchmark's code; none of the code itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from unforge.methods import _detectors
from unforge.nn import detector
from unforge.nn.detector import Sizes, View
from unforge.types import Batch, Losses, Recipe

EPSILON = 1e-12
"""Added to the size of a coefficient before the logarithm. Source: the code for training."""
FLOOR = 1e-6
"""Least variance. Deviation: the originals have none; with the first images alone it may be 0."""

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        # Deviations: as CNNSpot's; the square of 256 comes from the loader. Flips, blur and JPEG do not reach the
        # benchmark's transform.
        source="AIGCDetectBenchmark (its common settings)",
        optimiser="adam",
        lr=1e-4,
        min_lr=1e-6,
        batch=64,
        # ASSUMPTION(paper): as CNNSpot's
        epochs=20,
        samples_per_epoch=720000,
        augment=("resize",),
    ),
    "ridge": Recipe(
        # Deviations: a half cosine where the rate is constant; the step that validates best of all is taken, where
        # training stops when the loss on a validation set has not fallen for 5 epochs.
        source="FreDect (Frank et al. 2020), released code",
        optimiser="adam",
        lr=1e-3,
        min_lr=1e-5,
        batch=32,
        epochs=50,
        samples_per_epoch=200000,
        augment=("resize",),
    ),
    "small": _detectors.SMALL_RECIPE,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Source: AIGCDetectBenchmark."""

    classifier: Literal["resnet", "ridge"] = "resnet"
    sizes: Sizes = field(default_factory=Sizes)
    """Of the ResNet."""
    classes: int = 1
    """1: the logit of fake; 3: real, fully synthetic, tampered."""
    view: View = field(default_factory=lambda: View(side=256, crop=224))
    """The centre, in training too; its side is that of the transform."""
    ridge: float = 0.0
    """Weight of the squared weights of the ridge form. Source: FreDect, released code (0.01)."""
    input_size: int | None = 256
    """Images are resized to this in training, where the profile gives no crop (pixels)."""
    count_size: int = 256
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(
    Config(),
    sizes=Sizes(stem=8, width=4, expansion=4, depths=(1, 1, 1, 1)),
    view=View(crop=160),
    input_size=None,
    recipe=RECIPES["small"],
)
VARIANTS: dict[str, Config] = {
    "": Config(),
    "three": replace(Config(), classes=3),
    "ridge": replace(
        Config(),
        classifier="ridge",
        # ASSUMPTION(paper): its images are 128x128 already; of larger ones the centre
        view=View(crop=128),
        ridge=0.01,
        input_size=128,
        count_size=128,
        recipe=RECIPES["ridge"],
    ),
}


def cosine_transform(x: Tensor) -> Tensor:
    """Orthonormal DCT-II of both axes of (...,n,m), in float64.

    In float64 as the originals: coefficients that are 0 there would be rounding errors in float32.
    """
    return _along_last(_along_last(x.double()).transpose(-1, -2)).transpose(-1, -2)


def log_transform(pixels: Tensor) -> Tensor:
    """log(|DCT| + 1e-12) of each channel of (B,3,n,n), as float32. `pixels` in 0..255."""
    return (cosine_transform(pixels).abs() + EPSILON).log().float()


def _along_last(x: Tensor) -> Tensor:
    """Orthonormal DCT-II along the last axis, by one Fourier transform of the same length. Source: Makhoul 1980."""
    length = x.shape[-1]
    # even places forward, odd places backward
    spectrum = torch.fft.fft(torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1))
    angle = torch.arange(length, dtype=x.dtype, device=x.device) * (-math.pi / (2 * length))
    found = spectrum.real * angle.cos() - spectrum.imag * angle.sin()
    found *= math.sqrt(2 / length)
    found[..., 0] /= math.sqrt(2)
    return found


class FreDect(detector.Detector):
    """`network`, of the standardised transform; `dct_mean` and `dct_var` (3,n,n), over `seen_images`."""

    dct_mean: Tensor
    dct_var: Tensor
    seen_images: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config.classes, config.view, config.view)
        self.config = config
        size = config.view.crop
        if size is None:
            raise ValueError("view.crop is None: FreDect's transform has one size")
        self.network: nn.Module
        if config.classifier == "ridge":
            self.network = nn.Linear(3 * size * size, config.classes)
        elif config.classifier == "resnet":
            self.network = detector.ResNet(config.sizes, config.classes)
        else:
            raise ValueError(f"classifier {config.classifier!r}: 'resnet' and 'ridge' are accepted")
        self.register_buffer("dct_mean", torch.zeros(3, size, size))
        self.register_buffer("dct_var", torch.ones(3, size, size))
        self.register_buffer("seen_images", torch.zeros((), dtype=torch.int64))

    def prepared(self, image: Tensor) -> Tensor:
        """(B,3,n,n): the standardised log transform of the centre of `image` (B,3,H,W) in [0,1]. In training the
        images are added to the statistics first."""
        pixels = 255 * self.views[0].of(image, anywhere=False)
        found = log_transform(pixels)
        if self.training:
            self._add(found)
        return (found - self.dct_mean) / self.dct_var.clamp(min=FLOOR).sqrt()

    @torch.no_grad()
    def _add(self, found: Tensor) -> None:
        """Mean and variance (of the population) with the images of one more batch. Source: Chan et al. 1979."""
        before, count = self.seen_images, len(found)
        share = count / (before + count)
        mean = found.mean(0)
        var = (found - mean).square().mean(0)
        gap = mean - self.dct_mean
        # of no images the variance is 0
        old = self.dct_var * (before > 0)
        self.dct_var.copy_((1 - share) * old + share * var + share * (1 - share) * gap.square())
        self.dct_mean.add_(share * gap)
        self.seen_images += count

    def logits(self, prepared: Tensor) -> Tensor:
        return self.network(prepared.flatten(1) if self.config.classifier == "ridge" else prepared)

    def loss(self, batch: Batch) -> Losses:
        """As every detector's; with ridge, plus its weight times the sum of squared weights (term `ridge`)."""
        losses = super().loss(batch)
        if not self.config.ridge:
            return losses
        penalty = self.network.get_parameter("weight").square().sum()
        return Losses(total=losses.total + self.config.ridge * penalty, terms={**losses.terms, "ridge": penalty})


def build(config: Config, assets: Mapping[str, Path]) -> FreDect:
    """FreDect for `config`. It starts at random and needs no assets."""
    return FreDect(config)


def load_official(method: FreDect, path: Path, mean: Path, var: Path) -> None:
    """Load the benchmark's checkpoint and the files `dct_mean` and `dct_var`, tensors (3,n,n). Strict.

    ValueError for the ridge form, which was released as Keras folders, and for statistics of another size.
    """
    if method.config.classifier != "resnet":
        raise ValueError("released weights of the ridge form are Keras folders: only classifier 'resnet' is read")
    given = [torch.load(file, map_location="cpu", weights_only=True) for file in (mean, var)]
    for values in given:
        if values.shape != method.dct_mean.shape:
            raise ValueError(f"statistics of {tuple(values.shape)}: {tuple(method.dct_mean.shape)} is accepted")
    detector.load_official(method.network, path, "FreDect")
    method.dct_mean.copy_(given[0])
    method.dct_var.copy_(given[1])
