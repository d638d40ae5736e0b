"""Extractors of non-semantic traces, and the paths by which their maps reach a backbone.

An extractor takes images (B,3,H,W) in [0,1] and gives maps (B,`maps`,H,W); the borders are repeated, so that
the image's edge is no trace. `maps` is 3 or 9: the same number for each colour channel, channel by channel.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.nn.uniformer import pad_to


def filtered(image: Tensor, kernels: Tensor) -> Tensor:
    """Each of the kernels (3k,1,n,n), k for each colour channel, on its channel of (B,3,H,W); borders repeated.

    Deviation: one dense convolution whose kernels are 0 on the other channels, in channels_last: on a CPU it is
    almost three times as fast as three grouped ones.
    """
    count, _, size, _ = kernels.shape
    place = torch.eye(3, dtype=kernels.dtype, device=kernels.device).repeat_interleave(count // 3, 0)
    dense = place[:, :, None, None] * kernels
    padded = F.pad(image, (size // 2,) * 4, mode="replicate").contiguous(memory_format=torch.channels_last)
    return F.conv2d(padded, dense)


class Sobel(nn.Module):
    """Gradient magnitude of each colour channel; no parameters. Source: MVSS-Net's edge filter."""

    maps = 3

    def __init__(self) -> None:
        super().__init__()
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device="cpu") / 4
        kernels = torch.stack([across, across.T])[:, None].repeat(3, 1, 1, 1)
        self.register_buffer("kernels", kernels, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        slopes = filtered(image, self.kernels)
        return (slopes.unflatten(1, (3, 2)).square().sum(2) + 1e-8).sqrt()


class Bayar(nn.Module):
    """Constrained 5x5 convolution from 3 to 3 channels: the centre is -1 and the other weights sum to 1.

    216 trained parameters; the constraint holds at every step because the weights are divided by their sum.
    Source: Bayar and Stamm 2018. ASSUMPTION(paper): three output channels, as in MVSS-Net and ManTraNet.
    """

    maps = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 3, 24) + 0.5)

    def kernels(self) -> Tensor:
        """(3,3,5,5)."""
        ring = self.weight / self.weight.sum(2, keepdim=True)
        centre = -ring.new_ones(3, 3, 1)
        return torch.cat([ring[:, :, :12], centre, ring[:, :, 12:]], dim=2).view(3, 3, 5, 5)

    def forward(self, image: Tensor) -> Tensor:
        return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), self.kernels())


class DCTHighPass(nn.Module):
    """What is left of each colour channel without the lowest quarter (in each direction) of its DCT; no parameters.

    The transform is over the whole image. Removing a square of low frequencies is x - P x Q with
    P = D'D, D the first rows of the DCT matrix of the height (Q: of the width): two matrix products.
    Source: the DCT extractor of ObjectFormer. ASSUMPTION(paper): a quarter of the frequencies is low.
    """

    maps = 3

    def forward(self, image: Tensor) -> Tensor:
        rows = low_pass(image.shape[2]).to(image)
        columns = low_pass(image.shape[3]).to(image)
        return image - rows @ image @ columns


@functools.lru_cache(maxsize=64)
def low_pass(length: int) -> Tensor:
    """(length, length) projection on the lowest quarter of the orthonormal DCT-II's frequencies (at least one)."""
    keep = max(1, length // 4)
    grid = (torch.arange(length, device="cpu", dtype=torch.float64) + 0.5) * math.pi / length
    basis = torch.cos(grid[None, :] * torch.arange(keep, device="cpu", dtype=torch.float64)[:, None])
    basis *= math.sqrt(2.0 / length)
    basis[0] /= math.sqrt(2.0)
    return (basis.T @ basis).float()


def srm_kernels() -> Tensor:
    """(3,5,5): the second-order line, the 3x3 and the 5x5 square filter, each with centre -1 up to its norm.

    Source: Fridrich and Kodovsky 2012; the three that RGB-N (Zhou et al. 2018) uses.
    """
    square5 = [
        [-1.0, 2.0, -2.0, 2.0, -1.0],
        [2.0, -6.0, 8.0, -6.0, 2.0],
        [-2.0, 8.0, -12.0, 8.0, -2.0],
        [2.0, -6.0, 8.0, -6.0, 2.0],
        [-1.0, 2.0, -2.0, 2.0, -1.0],
    ]
    kernels = torch.zeros(3, 5, 5, device="cpu")
    kernels[0, 2, 1:4] = torch.tensor([1.0, -2.0, 1.0], device="cpu") / 2
    kernels[1, 1:4, 1:4] = torch.tensor([[-1.0, 2.0, -1.0], [2.0, -4.0, 2.0], [-1.0, 2.0, -1.0]], device="cpu") / 4
    kernels[2] = torch.tensor(square5, device="cpu") / 12
    return kernels


class SRM(nn.Module):
    """Three fixed high-pass filters on each colour channel, truncated at `limit` grey levels; no parameters.

    Nine maps in [-1,1]. Source: RGB-N (Zhou et al. 2018), truncation of SRM at 2 to 3 levels.
    ASSUMPTION(paper): filters on each channel by itself, truncation at 3.
    """

    maps = 9
    limit = 3.0

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernels", srm_kernels()[:, None].repeat(3, 1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        residual = filtered(image, self.kernels)
        return (residual * (255.0 / self.limit)).clamp(-1.0, 1.0)


class TruncatedStem(nn.Module):
    """Trained 5x5 filters on each colour channel, begun as the three SRM filters, truncated by tanh.

    Nine maps in (-1,1); residuals are scaled to `limit` grey levels before tanh. Each filter sums to 0 at every
    step (its mean is subtracted): with 0.01 of the grey level in it, tanh would be saturated everywhere.
    Not of the paper. Without truncation strong edges drown the traces, and nothing is learnt in hundreds of steps.
    """

    maps = 9
    limit = 3.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(srm_kernels()[:, None].repeat(3, 1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        residual = filtered(image, self.weight - self.weight.mean((2, 3), keepdim=True))
        return torch.tanh(residual * (255.0 / self.limit))


EXTRACTORS: dict[str, type[nn.Module]] = {
    "sobel": Sobel,
    "bayar": Bayar,
    "dct": DCTHighPass,
    "srm": SRM,
    "stem": TruncatedStem,
}


class LocalPath(nn.Module):
    """Maps (B,M,H,W) to a backbone's first tokens, or to what is added to them, (B,h,w,dim).

    Non-overlapping convolutions with the strides of the backbone's patch embedding, GELU between them; or, when
    `overlap`, 3x3 convolutions with these strides, each with BatchNorm and GELU: from scratch these find the
    energy of a residual within some hundred steps, where a linear patch embedding finds nothing.
    """

    def __init__(self, maps: int, dim: int, strides: tuple[int, ...], overlap: bool) -> None:
        super().__init__()
        self.total = math.prod(strides)
        layers: list[nn.Module] = []
        for i, stride in enumerate(strides):
            channels = dim if i else maps
            if overlap:
                layers += [nn.Conv2d(channels, dim, 3, stride, 1, bias=False), nn.BatchNorm2d(dim), nn.GELU()]
            else:
                layers += [nn.Conv2d(channels, dim, stride, stride=stride), nn.GELU()]
        self.convs = nn.Sequential(*(layers if overlap else layers[:-1]))

    def forward(self, maps: Tensor) -> Tensor:
        return self.convs(pad_to(maps, self.total)).permute(0, 2, 3, 1)


class GlobalPath(nn.Module):
    """Maps (B,M,H,W) to one vector for all tokens of the last stage, (B,1,1,dim).

    The magnitude of the maps, averaged over the maps of each colour and over the cells of a `grid` x `grid`
    division of the image, goes through two linear layers with GELU; the second starts at 0.
    """

    def __init__(self, dim: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.fc1 = nn.Linear(3 * grid * grid, dim)
        self.fc2 = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.fc1.weight, std=0.02)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, maps: Tensor) -> Tensor:
        energy = maps.abs().unflatten(1, (3, -1)).mean(2)
        cells = F.adaptive_avg_pool2d(energy, (self.grid, self.grid))
        return self.fc2(F.gelu(self.fc1(cells.flatten(1))))[:, None, None, :]
