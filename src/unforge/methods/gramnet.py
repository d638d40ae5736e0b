"""Gram-Net: a ResNet-18 with Gram matrices of its maps, which tell textures.

The default is the original: two outputs, a log softmax. Its labels are 0 for fake and 1 for real; here they are
the other way round, as everywhere, and `load_official` turns the outputs of a released network. The form of
AIGCDetectBenchmark, one logit on normalised crops, is the variant `benchmark`.

Source: Liu et al., CVPR 2020, and facts of its code and of the benchmark's; none of the code itself (no licence).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unforge.methods import _detectors
from unforge.nn import detector
from unforge.nn.detector import Sizes, View
from unforge.nn.resnet import kaiming
from unforge.types import Recipe

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        # Deviations: a half cosine where the rate is constant; the checkpoint is chosen on validation images, where the
        # code looks at sets it is tested on; the loader makes a square of 512 before it is shrunk.
        source="Gram-Net, released code",
        optimiser="adam",
        lr=1e-5,
        min_lr=1e-6,
        batch=16,
        epochs=5,
        # ASSUMPTION(paper): 10,000 images of each class
        samples_per_epoch=20000,
        weight_decay=1e-4,
        # ASSUMPTION(paper): no flips are named; the loader's default would turn images as well
        augment=("resize", "flip_horizontal"),
    ),
    "benchmark": Recipe(
        # Deviations as CNNSpot's.
        source="AIGCDetectBenchmark",
        optimiser="adam",
        lr=1e-4,
        min_lr=1e-6,
        batch=64,
        epochs=20,
        samples_per_epoch=720000,
        augment=("resize", "blur", "jpeg", "flip_horizontal"),
    ),
    "small": _detectors.SMALL_RECIPE,
}
NAMES = (
    ("conv_interi_0", "gi_fc1", "gi_fc2"),
    ("conv_inter0_0", "g0_fc1", "g0_fc2"),
    ("conv_inter1_0", "g_fc1r", "g_fc2r"),
    ("conv_inter2_0", "g2_fc1", "g2_fc2"),
    ("conv_inter3_0", "g3_fc1", "g3_fc2"),
    ("conv_inter4_0", "g4_fc1", "g4_fc2"),
)
"""Released names of each Gram block's convolutions: on the image, the stem's map, the pooled one, stages 1 to 3."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Source: Gram-Net, released code."""

    sizes: Sizes = field(default_factory=lambda: Sizes(block="basic", expansion=1, depths=(2, 2, 2, 2)))
    """ResNet-18."""
    gram: int = 32
    """Side of a Gram matrix, and length of the vector made of it."""
    hidden: int = 512
    dropout: float = 0.5
    classes: int = 2
    """2: real, fake; 1: the logit of fake; 3: real, fully synthetic, tampered."""
    raw: bool = True
    """Whether it sees 0..255 in the order BGR; else RGB with ImageNet's statistics."""
    shrink: tuple[int, int] | None = (64, 256)
    """In training each image is made a square of a side drawn from this range first (pixels); None: not."""
    train: View = field(default_factory=lambda: View(side=512, square=True))
    test: View = field(default_factory=lambda: View(side=512, square=True))
    input_size: int | None = 512
    """Images are resized to this in training, where the profile gives no crop (pixels)."""
    count_size: int = 512
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(
    Config(),
    sizes=Sizes(block="basic", stem=8, width=8, expansion=1, depths=(1, 1, 1, 1)),
    gram=8,
    hidden=32,
    shrink=None,
    train=View(crop=128),
    test=View(),
    input_size=None,
    recipe=RECIPES["small"],
)
"""Deviation: images keep their size; a square of 512 takes more than the time there is."""

VARIANTS: dict[str, Config] = {
    "": Config(),
    "three": replace(Config(), classes=3),
    "benchmark": replace(
        Config(),
        classes=1,
        raw=False,
        shrink=None,
        train=View(side=256, crop=224),
        test=View(side=256, crop=224),
        input_size=256,
        count_size=224,
        recipe=RECIPES["benchmark"],
    ),
}


def gram_matrix(x: Tensor) -> Tensor:
    """(B,C,H,W) to (B,1,C,C): products of channels, summed over positions and divided by C * H * W."""
    flat = x.flatten(2)
    return (flat @ flat.transpose(1, 2) / flat[0].numel())[:, None]


class Scale(nn.Module):
    """One learnt factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Network(detector.ResNet):
    """The trunk and six Gram blocks, with the released names."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.sizes, 0, head="")
        side = config.gram
        inputs = (3, config.sizes.stem, config.sizes.stem, *self.channels[:3])
        for channels, (first, second, third) in zip(inputs, NAMES, strict=True):
            self.add_module(first, _convolution(channels, side, 1))
            self.add_module(second, _convolution(1, side // 2, 2))
            self.add_module(third, _convolution(side // 2, side, 2))
        self.scale = Scale()
        self.fcnewr = nn.Sequential(
            nn.Linear(self.channels[-1] + len(NAMES) * side, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.classes),
        )
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x, *self.maps(x)]
        found = [maps[-1].mean(dim=(2, 3))]
        for seen, (first, second, third) in zip(maps, NAMES, strict=False):
            gram = gram_matrix(self.get_submodule(first)(seen))
            gram = self.get_submodule(third)(self.get_submodule(second)(gram))
            found.append(self.scale(gram.mean(dim=(2, 3))))
        return self.fcnewr(torch.cat(found, dim=1))


class GramNet(detector.Detector):
    """Gram-Net: logits (B,K), whose softmax is the released network's exponential."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.classes, config.train, config.test)
        self.config = config
        self.network = Network(config)

    def prepared(self, image: Tensor) -> Tensor:
        """(B,3,h,w): BGR in 0..255, or normalised RGB, of `image` (B,3,H,W) in [0,1]. In training shrunk before.

        ASSUMPTION(paper): tests bring images to the same square without shrinking them.
        """
        if self.training and self.config.shrink is not None:
            image = shrunk(image, *self.config.shrink, side=self.config.train.side or image.shape[2])
        return 255 * self.seen(image).flip(1) if self.config.raw else super().prepared(image)

    def logits(self, prepared: Tensor) -> Tensor:
        return self.network(prepared)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Everything decays, as in the released code."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "weight_decay": weight_decay}]


def shrunk(image: Tensor, least: int, most: int, side: int) -> Tensor:
    """Each of (B,3,H,W) to a square of a side drawn from `least` .. `most` and on to `side`. Draws from torch's
    generator. Deviation: filtered where it shrinks, where OpenCV's bilinear resize is not."""
    sides = torch.randint(least, most + 1, (len(image),), device="cpu").tolist()
    small = [detector.resized(one, each, True) for one, each in zip(image.split(1), sides, strict=True)]
    return torch.cat([detector.resized(one, side, True) for one in small])


def build(config: Config, assets: Mapping[str, Path]) -> GramNet:
    """Gram-Net for `config`. Asset `backbone`: torchvision's ResNet-18, from which the original starts; else random."""
    method = GramNet(config)
    if "backbone" in assets:
        detector.start(method.network, assets["backbone"], "ResNet-18")
    return method


def load_official(method: GramNet, path: Path) -> None:
    """Load a state dict with the released names. Strict. The originals are whole pickled modules: `torch.load` of them
    runs their code, so their state dict has to be written by other means.

    Two outputs are turned, from fake, real to real, fake.
    """
    detector.load_official(method.network, path, "Gram-Net")
    if method.classes == 2:
        with torch.no_grad():
            last = method.network.fcnewr[3]
            last.weight.copy_(last.weight.flip(0))
            last.bias.copy_(last.bias.flip(0))


def _convolution(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
