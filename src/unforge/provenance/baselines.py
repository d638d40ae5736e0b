"""What the paper is compared with, beyond signals that only differ in the encoder: homogeneity and LatentTracer."""

from __future__ import annotations

import torch
from torch import Tensor

from unforge.provenance.config import Tracer
from unforge.provenance.contract import Codec
from unforge.provenance.search import descend

LEVEL_WIDTH = 8
"""Grey values (of 256) in one of the 32 levels of the co-occurrence matrix."""


def grey(image: Tensor) -> Tensor:
    """(B,3,H,W) in [0,1] to 8-bit luma (B,H,W) int32: ITU-R 601 in integers, as Pillow rounds it."""
    red, green, blue = image.clamp(0, 1).mul(255).round().to(torch.int32).unbind(1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def homogeneity(image: Tensor, power: int = 2) -> Tensor:
    """How alike horizontal neighbours are, (B,3,H,W) in [0,1] to (B,) float64 in (0,1].

    Of the grey-level co-occurrence matrix (grey / 8, 32 levels, distance 1, angle 0, symmetric, normed) the sum of
    p(i,j) / (1 + |i-j|^power). The matrix counts neighbouring pairs, so this is their mean, and needs no matrix.

    Source: AEDR (Wang et al. 2025), released `cal_GLCM.py`, which has power 2; its paper prints power 1. Images
    below two pixels in width have no pair: ValueError.
    """
    if image.shape[-1] < 2:
        raise ValueError(f"an image {image.shape[-1]} pixel wide has no neighbouring pixels")
    levels = grey(image) // LEVEL_WIDTH
    difference = (levels[..., 1:] - levels[..., :-1]).abs().double()
    return (1 / (1 + difference**power)).flatten(1).mean(dim=1)


@torch.enable_grad()
def trace(tokenizer: Codec, image: Tensor, begin: Tensor, settings: Tracer) -> Tensor:
    """LatentTracer: error (B,) float64 left after fitting latents, begun at `begin` (B,C,h,w), to `image` (B,3,S,S).

    Adam on the mean squared error of the decoded, clamped image. Each image is fitted as if it were alone: errors
    are summed over the batch (Deviation: the released code averages, so that Adam's eps weighs more in large
    batches). A tokenizer that was frozen (`requires_grad_(False)`) takes less memory.
    """
    # the fused optimiser pairs values by their place in memory: latent and gradient must be laid out alike
    latent = begin.detach().clone(memory_format=torch.contiguous_format).requires_grad_(True)
    optimise = torch.optim.Adam([latent], lr=settings.lr, fused=True)
    error = lowest = torch.full(image.shape[:1], torch.inf, device=image.device)
    for step in range(1, settings.iterations + 1):
        each = (tokenizer.decode(latent).clamp(0, 1) - image).square().flatten(1).mean(dim=1)
        latent.grad = torch.autograd.grad(each.sum(), [latent])[0].contiguous()
        error = each.detach()
        lowest = torch.minimum(lowest, error)
        descend(optimise)
        if step in settings.halve:
            for group in optimise.param_groups:
                group["lr"] /= 2
    return (error if settings.score == "last" else lowest).double()
