"""Tokenizers of a few lines, by the contract: one that can be inverted exactly, one with scales, one that learns."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Quantized:
    features: Tensor
    tokens: Tensor


def nearest(features: Tensor, codes: Tensor) -> Tensor:
    """(N,C), (K,C) to (N,) by all distances, in float64."""
    return (features.double()[:, None] - codes.double()).square().sum(2).argmin(1)


class Toy(nn.Module):
    """What all toys share: codes (K,C) looked up on a square grid."""

    image_size: int
    grid: int
    codes: Tensor

    def quantize(self, features: Tensor) -> Quantized:
        flat = features.permute(0, 2, 3, 1).flatten(0, 2)
        tokens = nearest(flat, self.codes).view(len(features), -1)
        return Quantized(features=self.lookup(tokens), tokens=tokens)

    def lookup(self, tokens: Tensor) -> Tensor:
        return self.codes[tokens].transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def encoder_modules(self) -> list[nn.Module]:
        return [self.encoder]


class PatchToy(Toy):
    """Decoder: an orthogonal matrix from codes to the pixels of a patch. The encoder is its transpose, hence its
    exact inverse. Codes are patches of values in [0,1] seen through it, so every token map is an image."""

    def __init__(self, seed: int = 0, patch: int = 4, grid: int = 4, codes: int = 32) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        size = 3 * patch * patch
        self.patch, self.grid, self.image_size = patch, grid, patch * grid
        orthogonal, _ = np.linalg.qr(rng.normal(size=(size, size)))
        self.encoder = nn.Linear(size, size, bias=False)
        self.register_buffer("basis", torch.from_numpy(orthogonal).float())
        with torch.no_grad():
            self.encoder.weight.copy_(self.basis.T)
        patches = torch.from_numpy(rng.uniform(0, 1, (codes, size))).float()
        self.register_buffer("codes", patches @ self.basis)

    def encode(self, image: Tensor) -> Tensor:
        patches = F.unfold(image, self.patch, stride=self.patch).transpose(1, 2)
        return self.encoder(patches).transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def decode(self, features: Tensor) -> Tensor:
        patches = self.basis @ features.flatten(2)
        return F.fold(patches, (self.image_size, self.image_size), self.patch, stride=self.patch)


class ConvToy(Toy):
    """Two convolutions each way, random weights; the encoder is no inverse of anything."""

    def __init__(self, seed: int = 0, codes: int = 16) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.image_size, self.grid = 16, 4
        self.encoder = nn.Sequential(nn.Conv2d(3, 12, 4, stride=2, padding=1), nn.Tanh(), nn.Conv2d(12, 6, 2, stride=2))
        self.quant_conv = nn.Conv2d(6, 6, 1)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(6, 12, 2, stride=2), nn.Tanh(), nn.ConvTranspose2d(12, 3, 2, 2))
        self.register_buffer("codes", torch.randn(codes, 6))

    def encode(self, image: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(image))

    def decode(self, features: Tensor) -> Tensor:
        return self.decoder(features) + 0.5


class ScaledToy(nn.Module):
    """VAR in small: codes shared by all scales, residuals quantized from coarse to fine, a convolution a scale."""

    def __init__(
        self, seed: int = 0, scales: tuple[int, ...] = (1, 2, 4), codes: int = 12, width: int = 6, mix: float = 0.1
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.scales, self.grid, self.image_size = scales, scales[-1], 4 * scales[-1]
        self.encoder = nn.Conv2d(3, width, 4, stride=4)
        self.decoder = nn.ConvTranspose2d(width, 3, 4, stride=4)
        self.phi = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in scales)
        for phi in self.phi:
            nn.init.normal_(phi.weight, std=mix)
        self.register_buffer("codebook", torch.randn(codes, width))

    def encode(self, image: Tensor) -> Tensor:
        return self.encoder(image)

    def decode(self, features: Tensor) -> Tensor:
        return self.decoder(features) + 0.5

    def enlarged(self, scale: int, embedded: Tensor) -> Tensor:
        if embedded.shape[-1] != self.grid:
            embedded = F.interpolate(embedded, size=(self.grid, self.grid), mode="bicubic")
        return 0.5 * embedded + 0.5 * self.phi[scale](embedded)

    def quantize(self, features: Tensor) -> Quantized:
        rest, total, found = features.clone(), torch.zeros_like(features), []
        for scale, side in enumerate(self.scales):
            small = F.adaptive_avg_pool2d(rest, side)
            tokens = nearest(small.permute(0, 2, 3, 1).flatten(0, 2), self.codebook).view(len(features), -1)
            own = self.enlarged(scale, self.codebook[tokens].transpose(1, 2).unflatten(2, (side, side)))
            found.append(tokens)
            rest, total = rest - own, total + own
        return Quantized(features=total, tokens=torch.cat(found, dim=1))

    def lookup(self, tokens: Tensor) -> Tensor:
        total = torch.zeros(len(tokens), self.codebook.shape[1], self.grid, self.grid)
        start = 0
        for scale, side in enumerate(self.scales):
            own = self.codebook[tokens[:, start : start + side * side]]
            total = total + self.enlarged(scale, own.transpose(1, 2).unflatten(2, (side, side)))
            start += side * side
        return total

    def encoder_modules(self) -> list[nn.Module]:
        return [self.encoder]


def bytes_of(image: Tensor) -> Tensor:
    """(B,3,S,S) as an 8-bit file keeps it."""
    return image.clamp(0, 1).mul(255).round().div(255)


@functools.cache
def photographs(size: int, count: int = 12) -> Tensor:
    """(n,3,size,size) crops of scikit-image's photographs, half of them shrunk, each from another place."""
    from skimage import data

    rng = np.random.default_rng(3)
    crops = []
    for i in range(count):
        photo = [data.astronaut, data.chelsea, data.coffee, data.rocket][i % 4]()
        step = 1 + 3 * (i % 2)
        photo = photo[::step, ::step]
        y, x = (int(rng.integers(side - size)) for side in photo.shape[:2])
        crops.append(photo[y : y + size, x : x + size])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
