"""What detectors of whole images share: how an image becomes an input, torchvision's ResNets, loss and prediction.

Labels are 0 for real and 1 for fake; the three classes are real, fully synthetic and tampered, in this order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.nn import official
from unforge.nn.resnet import Bottleneck, kaiming
from unforge.types import Batch, Losses, Prediction

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet, RGB, for pixels in [0,1]."""
REAL, SYNTHETIC, TAMPERED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class View:
    """What of an image is seen. Sizes in pixels; None: left as it is."""

    side: int | None = None
    """The shorter side is brought to this, and proportions are kept; bilinear as Pillow's, in 8 bits."""
    square: bool = False
    """Both sides are brought to `side` instead."""
    crop: int | None = None
    """Side of a square cut out of it: in training anywhere, else at the centre."""

    def of(self, image: Tensor, anywhere: bool) -> Tensor:
        """`image` (B,3,H,W) in [0,1], of any size, as seen."""
        if self.side is not None:
            image = resized(image, self.side, self.square)
        if self.crop is None:
            return image
        return random_crop(image, self.crop) if anywhere else centre_crop(image, self.crop)


def resized(image: Tensor, side: int, square: bool) -> Tensor:
    """Shorter side, or both, of (B,3,H,W) in [0,1] to `side`: filtered where it shrinks, rounded to 8 bits.

    Source: torchvision's `Resize` of a Pillow image; the longer side is rounded down.
    """
    height, width = image.shape[2:]
    short = min(height, width)
    size = (side, side) if square else (int(side * height / short), int(side * width / short))
    if size == (height, width):
        return image
    image = F.interpolate(image.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    return image.mul(255).round().clamp(0, 255).div(255)


def centre_crop(image: Tensor, side: int) -> Tensor:
    """The middle (B,3,side,side) of an image; one that is smaller gets black borders.

    Source: torchvision's `CenterCrop`: of an odd rest the larger part is below and to the right of a border, and
    halves of a corner are rounded to even.
    """
    image = _at_least(image, side)
    top, left = (round((length - side) / 2) for length in image.shape[2:])
    return image[:, :, top : top + side, left : left + side]


def random_crop(image: Tensor, side: int) -> Tensor:
    """(B,3,side,side), each image's corner drawn from torch's generator. Deviation: an image that is smaller gets black
    borders, where torchvision's `RandomCrop` refuses it."""
    image = _at_least(image, side)
    room = [length - side + 1 for length in image.shape[2:]]
    corners = [[int(torch.randint(free, (), device="cpu")) for free in room] for _ in image]
    return torch.stack([one[:, y : y + side, x : x + side] for one, (y, x) in zip(image, corners, strict=True)])


def _at_least(image: Tensor, side: int) -> Tensor:
    below, beside = (max(0, side - length) for length in image.shape[2:])
    return F.pad(image, (beside // 2, (beside + 1) // 2, below // 2, (below + 1) // 2))


class Detector(nn.Module):
    """A detector of `classes` outputs. Subclasses give `prepared` and `logits`.

    1: the logit of fake; 2: real, fake; 3: real, fully synthetic, tampered.
    """

    EXTRAS: tuple[str, ...] = ()

    def __init__(
        self, classes: int, train: View, test: View, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
    ) -> None:
        super().__init__()
        if classes not in (1, 2, 3):
            raise ValueError(f"{classes} classes: 1 (logit of fake), 2 (real, fake) and 3 are accepted")
        self.classes = classes
        self.views = (test, train)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(1, 3, 1, 1), persistent=False)

    def seen(self, image: Tensor) -> Tensor:
        """(B,3,h,w) in [0,1]: the view of training or, in eval mode, of tests."""
        return self.views[self.training].of(image, anywhere=self.training)

    def prepared(self, image: Tensor) -> Tensor:
        """What the network sees of `image` (B,3,H,W) in [0,1], any size: its view, normalised."""
        return (self.seen(image) - self.mean) / self.std

    def logits(self, prepared: Tensor) -> Tensor:
        """(B,`classes`) for what `prepared` gives."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] to (B,`classes`)."""
        return self.logits(self.prepared(image))

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy: of the label (term `bce` or `ce`), or of three classes (`ce`), which masks tell: ValueError
        without them."""
        if self.classes == 3 and batch.mask is None:
            raise ValueError("three classes are told apart by label and mask: the batch has no masks")
        logits = self(batch.image).float()
        if self.classes == 1:
            value = F.binary_cross_entropy_with_logits(logits[:, 0], batch.label.to(logits))
            return Losses(total=value, terms={"bce": value})
        target = three_classes(batch.label, batch.mask) if batch.mask is not None and self.classes == 3 else batch.label
        value = F.cross_entropy(logits, target)
        return Losses(total=value, terms={"ce": value})

    @torch.no_grad()
    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """Score (B,): probability of fake, of three classes 1 - that of real, which come as `class_probs` (B,3). No
        mask. `image` (B,3,H,W) in [0,1], any size."""
        logits = self(image).float()
        if self.classes == 1:
            return Prediction(score=logits[:, 0].sigmoid())
        probabilities = logits.softmax(dim=1)
        if self.classes == 2:
            return Prediction(score=probabilities[:, 1])
        return Prediction(score=1 - probabilities[:, REAL], class_probs=probabilities)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases and norms."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]


def three_classes(label: Tensor, mask: Tensor) -> Tensor:
    """(B,) int64: label 0 is real; label 1 with a mask (B,1,H,W) of ones everywhere fully synthetic, else tampered."""
    everywhere = mask.flatten(1).amin(dim=1) > 0.5
    return torch.where(label == 0, REAL, torch.where(everywhere, SYNTHETIC, TAMPERED))


class Basic(nn.Module):
    """Two 3x3 convolutions, the first with the stride, added to the input. Source: He et al. 2016."""

    def __init__(self, channels: int, width: int, expansion: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width * expansion, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width * expansion)
        out = width * expansion
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A ResNet, with or without its last stages. The defaults are ResNet-50's."""

    block: Literal["bottleneck", "basic"] = "bottleneck"
    stem: int = 64
    """Channels of the first convolution, of stride 2."""
    kernel: int = 7
    """Its side (pixels)."""
    width: int = 64
    """Inner channels of the first stage; they double from stage to stage."""
    expansion: int = 4
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage; all but the first stage halve the side."""


class ResNet(nn.Module):
    """A ResNet with torchvision's key names; `head` names its last layer, to `outputs` (empty: there is none)."""

    def __init__(self, sizes: Sizes, outputs: int, head: str = "fc") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, sizes.stem, sizes.kernel, 2, padding=sizes.kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(sizes.stem)
        kind = {"bottleneck": Bottleneck, "basic": Basic}[sizes.block]
        channels = sizes.stem
        self.stages: list[str] = []
        self.channels: list[int] = []
        for stage, depth in enumerate(sizes.depths):
            blocks = []
            for place in range(depth):
                width = sizes.width * 2**stage
                blocks.append(kind(channels, width, sizes.expansion, stride=2 if stage and place == 0 else 1))
                channels = width * sizes.expansion
            self.stages.append(f"layer{stage + 1}")
            self.channels.append(channels)
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        self.head = head
        if head:
            self.add_module(head, nn.Linear(channels, outputs))
        kaiming(self)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Maps of (B,3,H,W): after the first convolution, after the pooling, and of each stage."""
        maps = [F.relu(self.bn1(self.conv1(x)))]
        maps.append(F.max_pool2d(maps[-1], 3, 2, padding=1))
        for stage in self.stages:
            maps.append(self.get_submodule(stage)(maps[-1]))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """(B,3,H,W) to (B,`outputs`)."""
        return self.get_submodule(self.head)(self.maps(x)[-1].mean(dim=(2, 3)))


TRUNK = ("conv1.", "bn1.", "layer")
"""How the names of a ResNet's tensors begin, without its head."""


def start(network: ResNet, path: Path, what: str) -> None:
    """Fill all but the head of `network` from torchvision's state dict in `path`. ValueError for any other."""
    given = {name: value for name, value in official.read(path).items() if name.startswith(TRUNK)}
    kept = {name: value for name, value in network.state_dict().items() if not name.startswith(TRUNK)}
    official.fill(network, _counters(network) | kept | given, what)


def load_official(network: nn.Module, path: Path, what: str) -> None:
    """Fill `network` from a released state dict: bare, or under `model`, `state_dict` or `netC`.

    Strict: ValueError for any other, naming what is missing, left over or of another shape.
    """
    official.fill(network, _counters(network) | released(path), what)


def released(path: Path) -> dict[str, Tensor]:
    """Tensors of a released checkpoint (read with `weights_only`), also of one that has them under `netC`."""
    if path.suffix == ".safetensors":
        return official.read(path)
    checkpoint: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    inner = checkpoint.get("netC")
    return official.tensors(inner if isinstance(inner, Mapping) else checkpoint)


def _counters(network: nn.Module) -> dict[str, Tensor]:
    """Counters of batch norms, which old files lack."""
    return {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
