"""The network, its losses and its prediction. Names of modules are those of official state dicts.

Source: MVSS-Net (Chen et al. 2021) and facts of the released network; none of its code (it has no licence).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.methods.mvssnet.config import Config
from unforge.nn import official
from unforge.nn.extractors import TruncatedStem
from unforge.nn.hrnet import resized
from unforge.nn.resnet import ResNet
from unforge.types import Batch, Losses, Prediction

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet, in RGB order; the released network applies them to BGR images."""

GREY = (0.1140, 0.5870, 0.2989)
"""Weights of blue, green and red."""

FLOOR = 1e-12
"""Added under the root of a gradient magnitude g. Deviation: the released code adds nothing, and where both
slopes are exactly 0 its gradient is NaN. g moves by at most 1e-6, and its gradient stays within 1."""


class Trunk(nn.Module):
    """A ResNet, one level down: official names are `model.*` and `noise_extractor.model.*`."""

    def __init__(self, config: Config, inputs: int) -> None:
        super().__init__()
        self.model = _resnet(config, inputs)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model(x)


class ConstrainedConv(nn.Module):
    """Bayar convolution from one channel to three, 5x5: the centre is -1 and the other 24 weights sum to 1.

    The weights are divided by their sum before each use, without an epsilon; in training the quotient is stored,
    outside the graph, so the gradient goes to the projected weights. Deviation: the released code stores it in
    evaluation too, which gives the same output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.rand(1, 3, 24))

    def weights(self) -> Tensor:
        """(3,1,5,5)."""
        kernel: Tensor = self.kernel
        if self.training:
            with torch.no_grad():
                kernel.div_(kernel.sum(2, keepdim=True))
        else:
            kernel = kernel / kernel.sum(2, keepdim=True)
        centre = -kernel.new_ones(1, 3, 1)
        return torch.cat([kernel[:, :, :12], centre, kernel[:, :, 12:]], dim=2).reshape(3, 1, 5, 5)

    def forward(self, grey: Tensor) -> Tensor:
        return F.conv2d(grey, self.weights(), padding=2)


def sobel(channels: int, kernel: list[list[float]]) -> nn.Sequential:
    """Fixed 3x3 filter, the same on each channel, summed to one, and its trained batch norm."""
    conv = nn.Conv2d(channels, 1, 3, padding=1, bias=False).requires_grad_(False)
    values = torch.tensor(kernel, device="cpu").expand(1, channels, 3, 3).clone()
    if not conv.weight.is_meta:
        conv.weight.data.copy_(values)
    return nn.Sequential(conv, nn.BatchNorm2d(1))


ACROSS = [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]
DOWN = [[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]


def gated(x: Tensor, slope_x: Tensor, slope_y: Tensor) -> Tensor:
    """Features (B,C,h,w) times the sigmoid of the magnitude of their slopes (B,1,h,w)."""
    return x * torch.sigmoid((slope_x.square() + slope_y.square() + FLOOR).sqrt())


class EdgeResidual(nn.Module):
    """Edge residual block (ERB) to one channel: 1x1, plus two 3x3 convolutions of it, then ReLU unless `act` is
    False."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 1, 1)
        self.conv2 = nn.Conv2d(1, 1, 3, padding=1)
        self.bn = nn.BatchNorm2d(1)
        self.conv3 = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor, act: bool = True) -> Tensor:
        x = self.conv1(x)
        x = x + self.conv3(F.relu(self.bn(self.conv2(x))))
        return F.relu(x) if act else x


class PositionAttention(nn.Module):
    """x + alpha * (attention between positions, not scaled, of x); alpha starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.conv_b = nn.Conv2d(channels, inner, 1)
        self.conv_c = nn.Conv2d(channels, inner, 1)
        self.conv_d = nn.Conv2d(channels, channels, 1)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.conv_b(x).flatten(2), self.conv_c(x).flatten(2), self.conv_d(x).flatten(2)
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        return self.alpha * (value @ attention.transpose(1, 2)).view_as(x) + x


class ChannelAttention(nn.Module):
    """x + beta * (attention between channels of x): channels attend to those they are least like; beta starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        likeness = flat @ flat.transpose(1, 2)
        attention = torch.softmax(likeness.amax(-1, keepdim=True) - likeness, dim=-1)
        return self.beta * (attention @ flat).view_as(x) + x


class DualAttention(nn.Module):
    """Maps of both branches, side by side, to `width` fused channels and one logit."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv_p1, self.conv_c1 = _conv(channels, width), _conv(channels, width)
        self.pam, self.cam = PositionAttention(width), ChannelAttention()
        self.conv_p2, self.conv_c2 = _conv(width, width), _conv(width, width)
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(width, 1, 1))

    def fused(self, x: Tensor) -> Tensor:
        return self.conv_p2(self.pam(self.conv_p1(x))) + self.conv_c2(self.cam(self.conv_c1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fused(x))


class MVSSNet(nn.Module):
    """MVSS-Net. The classifiers of the ResNets are never used and, like the Sobel filters, not trained."""

    EXTRAS = ("edges",)
    """`predict(..., extras=True)`: probability of an edge of the manipulated region, (B,1,H/4,W/4)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = _resnet(config, 3)
        channels = self.model.channels
        for stage, width in enumerate(channels, start=1):
            self.add_module(f"sobel_x{stage}", sobel(width, ACROSS))
            self.add_module(f"sobel_y{stage}", sobel(width, DOWN))
            self.add_module(f"erb_db_{stage}", EdgeResidual(width))
        for stage in (1, 2, 3):
            self.add_module(f"erb_trans_{stage}", EdgeResidual(1))
        if config.noise not in ("bayar", "stem"):
            raise ValueError(f"noise {config.noise!r}: 'bayar' and 'stem' are accepted")
        if config.noise == "stem":
            self.stem = TruncatedStem()
            self.noise_extractor = Trunk(config, TruncatedStem.maps)
        else:
            self.constrain_conv = ConstrainedConv()
            self.noise_extractor = Trunk(config, 3)
        self.head = DualAttention(2 * channels[-1], config.head, config.dropout)
        for name, values in (("mean", MEAN), ("std", STD), ("grey", GREY)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(1, 3, 1, 1), persistent=False)

    def prepared(self, image: Tensor) -> Tensor:
        """`image` (B,3,H,W) in [0,1] at the configured size (bilinear; proportions are not kept)."""
        size = self.config.input_size
        if size is None or tuple(image.shape[2:]) == (size, size):
            return image
        return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)

    def normalised(self, image: Tensor) -> Tensor:
        """RGB in [0,1] to what the trunk sees: BGR, with statistics in RGB order. Source: released code."""
        return (image.flip(1) - self.mean) / self.std

    def noise(self, image: Tensor, normalised: Tensor) -> Tensor:
        """What the noise branch sees: from the grey of the *normalised* image, or from RGB with the stem."""
        if self.config.noise == "stem":
            return self.stem(image)
        return self.constrain_conv((normalised * self.grey).sum(1, keepdim=True))

    def edges(self, maps: list[Tensor]) -> Tensor:
        """Edge logits (B,1,h,w) at the size of the first map, fused from the shallowest map to the deepest."""
        total: Tensor | None = None
        for stage, x in enumerate(maps, start=1):
            slopes = (self.get_submodule(f"sobel_{axis}{stage}")(x) for axis in "xy")
            found = self.get_submodule(f"erb_db_{stage}")(gated(x, *slopes))
            if total is None:
                total = found
            else:
                last = stage == len(maps)
                total = self.get_submodule(f"erb_trans_{stage - 1}")(
                    total + resized(found, total.shape[2:]), act=not last
                )
        assert total is not None
        return total

    def _maps(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps of the RGB branch and the last map of the noise branch, of a prepared image."""
        normalised = self.normalised(image)
        return self.model(normalised), self.noise_extractor(self.noise(image, normalised))[-1]

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """Maps (B,C,h,w), shallow to deep: `c1` to `c4` of the RGB branch, `noise`, `fused` by dual attention.

        `image` (B,3,H,W) in [0,1] of any size.
        """
        maps, noise = self._maps(self.prepared(image))
        named = {f"c{stage}": x for stage, x in enumerate(maps, start=1)}
        return named | {"noise": noise, "fused": self.head.fused(torch.cat([maps[-1], noise], dim=1))}

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B,3,H,W) in [0,1] to edge logits (B,1,h/4,w/4) and mask logits (B,1,h,w) at the configured size."""
        image = self.prepared(image)
        maps, noise = self._maps(image)
        coarse = self.head(torch.cat([maps[-1], noise], dim=1))
        return self.edges(maps), resized(coarse, image.shape[2:])

    def loss(self, batch: Batch) -> Losses:
        """0.16 Dice(mask) + 0.04 BCE(map's maximum) + 0.80 Dice(edges). Terms: `mask`, `image`, `edge` (and `bce`).

        Dice terms are over all manipulated images of the batch together, 0 if it has none; the image term is over
        all. An image counts as manipulated if its mask is not empty. ASSUMPTION(paper): that an authentic image
        enters the image term only is the authors' word; IMDL-BenCo applies all terms to all images.
        ValueError without masks.
        """
        if batch.mask is None:
            raise ValueError("MVSS-Net learns from masks: the batch has none")
        edge_logits, logits = (x.float() for x in self(batch.image))
        mask = batch.mask.to(logits)
        if mask.shape[2:] != logits.shape[2:]:
            mask = F.interpolate(mask, size=tuple(logits.shape[2:]), mode="nearest")
        forged = mask.flatten(1).amax(1)
        terms = {
            "mask": dice(logits.sigmoid(), mask, forged),
            # the maximum of the probabilities is the probability of the maximum
            "image": F.binary_cross_entropy_with_logits(logits.flatten(1).amax(1), forged),
            "edge": dice(edge_logits.sigmoid(), contour(mask, edge_logits.shape[2:]), forged),
        }
        config = self.config
        total = config.mask * terms["mask"] + config.image * terms["image"] + config.edge * terms["edge"]
        if config.bce:
            terms["bce"] = F.binary_cross_entropy_with_logits(logits, mask)
            total = total + config.bce * terms["bce"]
        return Losses(total=total, terms=terms)

    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """Probability of manipulation (B,1,h,w) at the configured size; the score is its maximum.

        `image` (B,3,H,W) in [0,1], any size. Deviation: the official evaluation takes the maximum after rounding to
        8 bits and resizing to the image's own size.
        """
        edges, logits = self(image)
        mask = logits.float().sigmoid()
        found = {"edges": edges.float().sigmoid()} if extras else {}
        return Prediction(mask=mask, score=mask.flatten(1).amax(1), extras=found)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Two groups: matrices and filters with `weight_decay`; biases, norms and the constrained kernel, which is
        normalised anyway, without."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (free if parameter.ndim <= 1 or name == "constrain_conv.kernel" else decayed).append(parameter)
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def dice(probability: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """1 - (2 sum(pg) + 1) / (sum p^2 + sum g^2 + 1) over the images (B,1,h,w) whose weight (B,) is 1; 0 if none's is.

    Source: MVSS-Net; ASSUMPTION(paper): squares and the added 1 as in IMDL-BenCo.
    """
    weight = weight.view(-1, 1, 1, 1)
    probability, mask = probability * weight, mask * weight
    return 1 - (2 * (probability * mask).sum() + 1) / (probability.square().sum() + mask.square().sum() + 1)


def contour(mask: Tensor, size: torch.Size) -> Tensor:
    """(B,1,h,w), 0 or 1: manipulated cells of the mask at `size` that have another, or the image's border, as one
    of four neighbours. ASSUMPTION(paper): the mask is brought to the edges' size by nearest neighbour first."""
    mask = F.interpolate(mask, size=tuple(size), mode="nearest")
    padded = F.pad(mask, (1, 1, 1, 1))
    sides = (padded[:, :, :-2, 1:-1], padded[:, :, 2:, 1:-1], padded[:, :, 1:-1, :-2], padded[:, :, 1:-1, 2:])
    inside = torch.stack(sides).amin(0)
    return mask * (1 - inside)


def build(config: Config, assets: Mapping[str, Path]) -> MVSSNet:
    """MVSS-Net for `config`. Asset `backbone`: a state dict of torchvision's ResNet-50, or of this method."""
    method = MVSSNet(config)
    if "backbone" in assets:
        load_official(method, official.read(assets["backbone"]))
    return method


def load_official(method: MVSSNet, state_dict: Mapping[str, object]) -> None:
    """Load the official state dict (800 tensors), or a ResNet-50's (as torchvision names them) into both branches.

    Strict: ValueError for any other, naming what is missing, left over or of another shape.
    """
    given = official.tensors(state_dict)
    if any(name.startswith("model.") for name in given):
        official.fill(method, given, "MVSS-Net")
        return
    # torchvision's files of that time lack the counters of batch norm
    counters = {n: v for n, v in method.model.state_dict().items() if n.endswith("num_batches_tracked")}
    official.fill(method.model, counters | given, "ResNet-50")
    official.fill(method.noise_extractor.model, counters | given, "ResNet-50")


def _resnet(config: Config, inputs: int) -> ResNet:
    return ResNet(
        inputs=inputs,
        stem=config.stem,
        width=config.width,
        expansion=config.expansion,
        depths=config.depths,
        strides=config.strides,
        rates=config.rates,
        classes=config.classes,
    )


def _conv(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
