"""Quantizers of several scales: VAR's residual codes and Infinity's residual bits.

Both go from coarse to fine: the residual is averaged to the scale, quantized, brought to full size and subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.tokenizers.quantizers import Quantizer, check_tokens, drawn, nearest, rows


def shrunk(features: Tensor, side: int) -> Tensor:
    """(B,C,h,w) averaged over areas to (B,C,side,side); as it is when it has this side."""
    return features if features.shape[-1] == side else F.interpolate(features, size=(side, side), mode="area")


def split(tokens: Tensor, scales: Sequence[int]) -> list[Tensor]:
    """Tokens (B,N) or bits (B,N,d) of all scales to one (B,p,p[,d]) for each scale p. ValueError when N is not the
    number of tokens of the scales."""
    sizes = [side * side for side in scales]
    if tokens.ndim < 2 or tokens.shape[1] != sum(sizes):
        raise ValueError(f"tokens {tuple(tokens.shape)}: scales {tuple(scales)} have {sum(sizes)} tokens an image")
    parts = tokens.split(sizes, dim=1)
    return [p.reshape(len(tokens), side, side, *tokens.shape[2:]) for p, side in zip(parts, scales, strict=True)]


def added_up(quantizer: MultiScale | BinarySpherical, vectors: Sequence[Tensor]) -> list[Tensor]:
    """f_Z (B,C,h,w) after each scale, from one (B,C,p,p) of vectors for each. ValueError for another number."""
    if len(vectors) != len(quantizer.scales):
        raise ValueError(f"{len(vectors)} maps: there are {len(quantizer.scales)} scales")
    found: list[Tensor] = []
    for scale, part in enumerate(vectors):
        added = quantizer.enlarged(scale, part)
        found.append(found[-1] + added if found else added)
    return found


class Phi(nn.Conv2d):
    """(B,C,h,w) to half itself and half its 3x3 convolution.

    Source: VAR, `quant_resi` 0.5. ASSUMPTION(paper): starts as the identity; the released code as torch starts a
    convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)
        nn.init.dirac_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x + 0.5 * super().forward(x)


def phi_of_scales(scales: int, phis: int) -> list[int]:
    """Which phi each scale has: the nearest of evenly spaced ticks. Two scales of VAR's ten lie midway, so this is
    computed in the released code's own way and rounding. Source: VAR."""
    edge = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(edge, 1 - edge, phis)
    return [int(np.argmin(np.abs(ticks - scale / max(1, scales - 1)))) for scale in range(scales)]


class MultiScale(Quantizer):
    """Codes of one codebook at every scale p of `scales` (sides, coarse to fine; the last is the map's own).

    rest = f; for each scale: the codes nearest to the shrunk rest, enlarged (bicubic), through phi, are added to f_Z
    and subtracted from rest. Source: VAR.
    """

    def __init__(self, codes: int, channels: int, *, scales: Sequence[int], phis: int) -> None:
        super().__init__(codes, channels)
        self.scales = tuple(scales)
        self.phi = nn.ModuleList(Phi(channels) for _ in range(phis))
        self.phi_of = phi_of_scales(len(self.scales), phis)

    def enlarged(self, scale: int, vectors: Tensor) -> Tensor:
        """What code vectors (B,C,p,p) of scale number `scale` add to f_Z."""
        side = self.scales[-1]
        if vectors.shape[-1] != side:
            vectors = F.interpolate(vectors, size=(side, side), mode="bicubic")
        return self.phi[self.phi_of[scale]](vectors)

    def combine(self, vectors: Sequence[Tensor]) -> Tensor:
        """f_Z from one (B,C,p,p) of code vectors (or mixtures of them) for each scale."""
        return added_up(self, vectors)[-1]

    def search(self, features: Tensor) -> Tensor:
        return self._greedy(features.detach(), self.codebook.detach())[0]

    def sums(self, indices: Tensor) -> list[Tensor]:
        """f_Z (B,C,h,w) after each scale, for tokens (B,N): what next-scale generation goes on from."""
        check_tokens(indices, len(self.codebook))
        return added_up(self, [F.embedding(p, self.codebook).permute(0, 3, 1, 2) for p in split(indices, self.scales)])

    @torch.no_grad()
    def _greedy(self, features: Tensor, codebook: Tensor | None) -> tuple[Tensor, Tensor]:
        """Indices and the codebook: `codebook`, or (None) one made of what is left at each scale in turn, the scales
        sharing the codes in proportion to their sides."""
        rest, indices = features, []
        made: list[Tensor] = []
        bounds = np.cumsum([0, *self.scales]) * len(self.codebook) // sum(self.scales)
        for scale, side in enumerate(self.scales):
            wanted = rows(shrunk(rest, side))
            if codebook is None:
                made.append(drawn(wanted, int(bounds[scale + 1] - bounds[scale])))
            book = torch.cat(made) if codebook is None else codebook
            found = nearest(wanted, book)
            indices.append(found.view(len(features), -1))
            vectors = book[found].view(len(features), side, side, -1).permute(0, 3, 1, 2)
            rest = rest - self.enlarged(scale, vectors)
        return torch.cat(indices, dim=1), torch.cat(made) if codebook is None else codebook

    def start(self, features: Tensor) -> None:
        self.codebook.copy_(self._greedy(features, None)[1])

    def candidates(self, features: Tensor) -> Tensor:
        """Rests of every scale, each scale with the same number of rows: few places would else have no say."""
        sums = self.sums(self.search(features))
        rests = [features, *(features - part for part in sums[:-1])]
        most = features.shape[0] * self.scales[-1] ** 2
        return torch.cat([drawn(rows(shrunk(r, side)), most) for r, side in zip(rests, self.scales, strict=True)])


class BinarySpherical(nn.Module):
    """Bits at every scale: the shrunk residual, l2-normalised, becomes signs divided by sqrt(d), enlarged
    (bilinear), added to f_Z and subtracted. No codebook, no phi. 0 has the sign -.

    Tokens are bits (B,N,d) bool. Source: Infinity (BSQ, multi-scale); its trilinear enlargement of one frame is
    bilinear.
    """

    STATE: tuple[str, ...] = ()

    def __init__(self, bits: int, *, scales: Sequence[int]) -> None:
        super().__init__()
        self.bits, self.scales = bits, tuple(scales)

    @property
    def codes(self) -> int:
        """How many tokens there are: 2 ** d."""
        return 2**self.bits

    def enlarged(self, scale: int, vectors: Tensor) -> Tensor:
        """What vectors (B,d,p,p) of scale number `scale` add to f_Z."""
        side = self.scales[-1]
        if vectors.shape[-1] == side:
            return vectors
        return F.interpolate(vectors, size=(side, side), mode="bilinear", align_corners=False)

    def combine(self, vectors: Sequence[Tensor]) -> Tensor:
        """f_Z from one (B,d,p,p) for each scale."""
        return added_up(self, vectors)[-1]

    @torch.no_grad()
    def search(self, features: Tensor) -> Tensor:
        """Bits (B,N,d) for (B,d,h,w)."""
        rest, found = features.detach(), []
        for scale, side in enumerate(self.scales):
            bits = F.normalize(shrunk(rest, side), dim=1) > 0
            found.append(bits.flatten(2).transpose(1, 2))
            rest = rest - self.enlarged(scale, self._vectors(bits, rest.dtype))
        return torch.cat(found, dim=1)

    def sums(self, indices: Tensor) -> list[Tensor]:
        """f_Z (B,d,h,w) after each scale, for bits (B,N,d). ValueError for bits of another form."""
        if indices.dtype != torch.bool or indices.ndim != 3 or indices.shape[2] != self.bits:
            raise ValueError(f"tokens {tuple(indices.shape)} of {indices.dtype}: give bool (B,N,{self.bits})")
        parts = split(indices, self.scales)
        return added_up(self, [self._vectors(p.permute(0, 3, 1, 2), torch.get_default_dtype()) for p in parts])

    def tokens(self, features: Tensor) -> Tensor:
        return self.search(features)

    def lookup(self, tokens: Tensor) -> Tensor:
        return self.sums(tokens)[-1]

    def losses(self, features: Tensor, sums: list[Tensor]) -> Mapping[str, Tensor]:
        """`commitment` only: there is no codebook to move. ASSUMPTION(paper): Infinity's entropy term is left out;
        every code is within reach of small features without it."""
        return {"commitment": F.mse_loss(features, sums[-1].detach())}

    def prepare(self, features: Tensor, revive_after: int) -> None:
        """Nothing: no codebook."""

    def chosen(self, indices: Tensor) -> None:
        """Nothing: no codebook."""

    def _vectors(self, bits: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.where(bits, 1.0, -1.0).to(dtype) / self.bits**0.5
