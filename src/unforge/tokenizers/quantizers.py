"""Nearest code, and the quantizers of single-scale tokenizers; `multiscale` has those of several scales.

A quantizer's *indices* are what it searches with and learns by; its *tokens* are what a generator sees. They are
the same but in `Remapped`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

ROWS, GROUP = 512, 64
"""Features compared at once, and codes whose minimum is taken at once."""
BLOCK, SHARED_BLOCK = 2**20, 2**22
"""Numbers that exist at once, distances and codes: 4 MiB of float32, which stay in a core's cache; several threads, or
a GPU, get 16 MiB, so that an operation is long enough to be shared."""
DIRECT = 25
"""`torch.cdist` takes differences up to here and matrix products above."""


@torch.no_grad()
def nearest(features: Tensor, codebook: Tensor) -> Tensor:
    """Index (N,) int64 of the code of `codebook` (K,C) that is nearest to each of `features` (N,C); of equals the
    lowest. The same indices as `torch.cdist(features, codebook).argmin(1)`, from the same rounded distances.

    Distances exist a block at a time, of at most 512 features. ValueError when the shapes do not fit or the codebook
    is empty.
    """
    if features.ndim != 2 or codebook.ndim != 2 or features.shape[1] != codebook.shape[1] or not len(codebook):
        raise ValueError(f"features {tuple(features.shape)}, codebook {tuple(codebook.shape)}: give (N,C) and (K,C)")
    count, codes = len(features), len(codebook)
    if max(count, codes) <= DIRECT or not count:
        return torch.cdist(features, codebook).argmin(1)
    # |x|^2 + |e|^2 - 2 x e as one product, as cdist has it: equal rounding, equal indices
    squared = features.pow(2).sum(1, keepdim=True)
    left = torch.cat([features.mul(-2), squared, torch.ones_like(squared)], dim=1)
    best = torch.full((count,), math.inf, dtype=left.dtype, device=left.device)
    found = torch.zeros(count, dtype=torch.int64, device=left.device)
    parts = left.split(-(-count // -(-count // ROWS)))
    room = BLOCK if features.device.type == "cpu" and torch.get_num_threads() == 1 else SHARED_BLOCK
    width = max(GROUP, room // (len(parts[0]) + 3 * left.shape[1]) // GROUP * GROUP)
    for start in range(0, codes, width):
        some = codebook[start : start + width]
        squared = some.pow(2).sum(1, keepdim=True)
        right = torch.cat([some, torch.ones_like(squared), squared], dim=1).T
        first = 0
        for rows in parts:
            value, index = _lowest(rows @ right)
            here = slice(first, first + len(rows))
            closer = value < best[here]
            best[here] = torch.where(closer, value, best[here])
            found[here] = torch.where(closer, index + start, found[here])
            first += len(rows)
    return found


def _lowest(squared: Tensor) -> tuple[Tensor, Tensor]:
    """Square root of each row's minimum, and the first place that has this root (rounding makes some roots equal)."""
    if squared.shape[1] % GROUP:
        squared = F.pad(squared, (0, -squared.shape[1] % GROUP), value=math.inf)
    groups = squared.view(len(squared), -1, GROUP)
    values, group = groups.amin(2).clamp_(min=0).sqrt_().min(1)
    members = groups[torch.arange(len(groups), device=groups.device), group]
    return values, group * GROUP + members.clamp_(min=0).sqrt_().argmin(1)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(context: object, features: Tensor, quantized: Tensor) -> Tensor:
        return quantized.clone()

    @staticmethod
    def backward(context: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(features: Tensor, quantized: Tensor) -> Tensor:
    """`quantized`, bit for bit, whose gradient goes to `features` unchanged."""
    return _StraightThrough.apply(features, quantized.detach())


class Quantizer(nn.Module):
    """What a tokenizer needs of its quantizer, for those that have a codebook (K,C)."""

    codebook: nn.Parameter
    ready: Tensor
    idle: Tensor

    STATE: tuple[str, ...] = ("ready", "idle")
    """Buffers that no released state dict has: whether the codebook has been started from data, and for how many
    training steps each code has not been chosen."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(codes, channels).uniform_(-1 / codes, 1 / codes))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64))

    @property
    def codes(self) -> int:
        """How many tokens there are."""
        return len(self.codebook)

    def vectors(self) -> Tensor:
        """(K,C) by index."""
        return self.codebook

    def search(self, features: Tensor) -> Tensor:
        """Indices (B,N) for (B,C,h,w)."""
        raise NotImplementedError

    def sums(self, indices: Tensor) -> list[Tensor]:
        """Quantized features (B,C,h,w) after each scale; the last are f_Z."""
        raise NotImplementedError

    def tokens(self, features: Tensor) -> Tensor:
        """Tokens for (B,C,h,w)."""
        return self.search(features)

    def lookup(self, tokens: Tensor) -> Tensor:
        """f_Z (B,C,h,w) for tokens."""
        return self.sums(tokens)[-1]

    def losses(self, features: Tensor, sums: list[Tensor]) -> Mapping[str, Tensor]:
        """`codebook`: what moves codes to features; `commitment`: what moves features to codes. Means over scales.

        Source: VQ-VAE's two terms as in the released code of LlamaGen and VAR. Deviation: the Taming code weighs
        them the other way round, by its own account a bug.
        """
        target = features.detach()
        return {
            "codebook": torch.stack([F.mse_loss(part, target) for part in sums]).mean(),
            "commitment": torch.stack([F.mse_loss(features, part.detach()) for part in sums]).mean(),
        }

    @torch.no_grad()
    def prepare(self, features: Tensor, revive_after: int) -> None:
        """Before a training step: start the codebook from these features (B,C,h,w), or move codes that were not
        chosen for `revive_after` steps onto features drawn at random. Draws from torch's generator."""
        if not self.ready:
            self.start(features)
            self.ready.fill_(True)
            self.idle.zero_()
        else:
            dead = (self.idle >= revive_after).nonzero()[:, 0]
            if not len(dead):
                return
            self.codebook[dead] = drawn(self.candidates(features), len(dead))
            self.idle[dead] = 0
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(self.codebook.data, 0)

    def start(self, features: Tensor) -> None:
        """Codes from features (B,C,h,w)."""
        self.codebook.copy_(drawn(self.candidates(features), len(self.codebook)))

    def candidates(self, features: Tensor) -> Tensor:
        """(N,C): what a code may be put onto."""
        return rows(features)

    @torch.no_grad()
    def chosen(self, indices: Tensor) -> None:
        """After a training step: note which codes were chosen."""
        seen = torch.bincount(indices.flatten(), minlength=len(self.codebook))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(seen)
        self.idle.add_(1).masked_fill_(seen > 0, 0)


def rows(features: Tensor) -> Tensor:
    """(B,C,h,w) to (B h w, C)."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def drawn(candidates: Tensor, count: int) -> Tensor:
    """`count` of the rows at random: each once before any twice. Those drawn again get noise of 1 % of the rows'
    deviation, so that no two codes are equal."""
    size, device = len(candidates), candidates.device
    order = torch.cat([torch.randperm(size) for _ in range(-(-count // size))])[:count].to(device)
    result = candidates[order]
    if count > size:
        noise = torch.randn(count - size, candidates.shape[1]).to(device)
        result[size:] += 0.01 * candidates.std(0, correction=0) * noise
    return result


class VectorQuantizer(Quantizer):
    """One code for each place. `normalised`: codes are l2-normalised, and features are expected to be.

    Source: VQ-VAE; normalised: LlamaGen.
    """

    def __init__(self, codes: int, channels: int, *, normalised: bool = False) -> None:
        super().__init__(codes, channels)
        self.normalised = normalised

    def vectors(self) -> Tensor:
        return F.normalize(self.codebook, dim=1) if self.normalised else self.codebook

    def search(self, features: Tensor) -> Tensor:
        return nearest(rows(features.detach()), self.vectors().detach()).view(len(features), -1)

    def sums(self, indices: Tensor) -> list[Tensor]:
        return [self.placed(indices)]

    def placed(self, indices: Tensor) -> Tensor:
        """(B,N) indices to (B,C,h,w), h = w. ValueError when N is not a square or an index is not there."""
        side = math.isqrt(indices.shape[-1])
        if indices.ndim != 2 or side * side != indices.shape[-1]:
            raise ValueError(f"tokens {tuple(indices.shape)}: give (B,N) with N a square")
        check_tokens(indices, len(self.codebook))
        return F.embedding(indices, self.vectors()).transpose(1, 2).reshape(len(indices), -1, side, side)


class Remapped(VectorQuantizer):
    """A codebook of which a generator uses some codes only: token t stands for code `to_full[t]`.

    Until `keep` or a released mapping says otherwise, the first `used` codes are used, and every other code's
    token is that of code i modulo `used`. Source: VQ-Diffusion (974 of 16,384 codes).
    """

    STATE = (*Quantizer.STATE, "to_full", "to_used")
    """The mapping comes as a file of its own."""

    to_full: Tensor
    to_used: Tensor

    def __init__(self, codes: int, channels: int, *, used: int) -> None:
        if not 0 < used <= codes:
            raise ValueError(f"used {used}: accepted is 1 to {codes}")
        super().__init__(codes, channels)
        self.register_buffer("to_full", torch.tensor(range(used)))
        self.register_buffer("to_used", torch.tensor([code % used for code in range(codes)]))

    @property
    def codes(self) -> int:
        return len(self.to_full)

    def tokens(self, features: Tensor) -> Tensor:
        return self.to_used[self.search(features)]

    def lookup(self, tokens: Tensor) -> Tensor:
        """f_Z (B,C,h,w) of the codes that tokens (B,N) stand for."""
        check_tokens(tokens, self.codes)
        return self.placed(self.to_full[tokens])

    @torch.no_grad()
    def keep(self, counts: Tensor) -> None:
        """Use the codes with the highest `counts` (K,), of equals the lowest; another code's token is that of the
        nearest used code.

        ASSUMPTION(paper): the release has the mapping as a file and not how unused codes were mapped.
        """
        most = counts.to(torch.int64).cpu().argsort(descending=True, stable=True)[: self.codes]
        self.to_full.copy_(most.sort().values)
        mapping = torch.full_like(self.to_used, -1)
        mapping[self.to_full] = torch.arange(self.codes).to(mapping)
        self._fill(mapping)

    @torch.no_grad()
    def mapped(self, to_used: Tensor) -> None:
        """Take a released mapping: (K,) token of each code; negative: unused. Of the codes with one token the lowest
        is what the token stands for. ValueError when it has another shape, or not every token."""
        mapping = torch.as_tensor(to_used)
        if mapping.shape != self.to_used.shape or mapping.is_floating_point():
            raise ValueError(f"mapping {tuple(mapping.shape)} of {mapping.dtype}: give {tuple(self.to_used.shape)} int")
        mapping = mapping.to(self.to_used)
        known = (mapping >= 0).nonzero()[:, 0]
        found = mapping[known].unique()
        if not torch.equal(found, torch.arange(self.codes).to(found)):
            raise ValueError(f"mapping has {len(found)} tokens up to {int(mapping.max())}, not 0 to {self.codes - 1}")
        first = torch.full_like(self.to_full, len(self.codebook))
        self.to_full.copy_(first.scatter_reduce(0, mapping[known], known, "amin"))
        self._fill(mapping)

    def _fill(self, mapping: Tensor) -> None:
        unused = (mapping < 0).nonzero()[:, 0]
        if len(unused):
            mapping[unused] = nearest(self.codebook[unused], self.codebook[self.to_full])
        self.to_used.copy_(mapping)


def check_tokens(tokens: Tensor, codes: int) -> None:
    """ValueError when a token is not one of 0 to codes - 1."""
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens of {tokens.dtype}: give integers")
    if tokens.device.type != "meta" and tokens.numel() and not (0 <= int(tokens.min()) <= int(tokens.max()) < codes):
        raise ValueError(f"tokens {int(tokens.min())} to {int(tokens.max())}: there is 0 to {codes - 1}")
