"""Encoders and decoders of mask tokenizers: transformers as TiTok has them, and convolutions for the small scale.

Shape legend: L latents, D dimension of a code, S side of a mask (pixels), G side of the grid of patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.nn.attention import init_linear

PIXELS = 1024
"""Channels that enter the pixel decoder of the transformer."""


class Block(nn.Module):
    """Pre-norm attention and MLP on (B,N,C). `sees` (N,N) bool: which keys a query sees; None: all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, sees: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=sees)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm2(x))


def causal(patches: int, latents: int, device: torch.device) -> Tensor:
    """(N,N) bool, N = patches + latents: a patch sees the patches; a latent sees the patches, itself and the latents
    before it."""
    sees = torch.ones(patches + latents, patches + latents, dtype=torch.bool, device=device).tril()
    sees[:, :patches] = True
    return sees


class ViTEncoder(nn.Module):
    """(B,1,S,S) in [0,1] to latents (B,L,D): class token, patches and causal latents through one transformer.

    Source: HiMTok, released code. Deviation: its reshape of the latents, which mixes them and so undoes the causal
    mask (TiTok's `is_legacy`), is left out.
    """

    def __init__(
        self, *, size: int, patch: int, width: int, depth: int, heads: int, latents: int, code_dim: int
    ) -> None:
        super().__init__()
        self.patches = (size // patch) ** 2 + 1
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        scale = width**-0.5
        self.class_token = nn.Parameter(scale * torch.randn(1, 1, width))
        self.positions = nn.Parameter(scale * torch.randn(1, self.patches, width))
        self.latents = nn.Parameter(scale * torch.randn(1, latents, width))
        self.latent_positions = nn.Parameter(scale * torch.randn(1, latents, width))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, code_dim)
        init_linear(self)

    def forward(self, mask: Tensor) -> Tensor:
        b, latents = len(mask), self.latents.shape[1]
        x = self.patch_embed(mask.expand(-1, 3, -1, -1)).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(b, -1, -1), x], dim=1) + self.positions
        x = self.norm_in(torch.cat([x, (self.latents + self.latent_positions).expand(b, -1, -1)], dim=1))
        sees = causal(self.patches, latents, x.device)
        for block in self.blocks:
            x = block(x, sees)
        return self.head(self.norm_out(x[:, -latents:]))


class ViTDecoder(nn.Module):
    """Latents (B,L,D) to logits (B,1,S,S): mask tokens and latents through a transformer, then the pixel decoder.

    Source: HiMTok, released code: a latent that is not kept is 0 after its embedding, with its position; the logit
    is 5 times the mean of three channels minus 0.5. Deviation: in HiMTok's hierarchical loss, unlike in its
    pretraining, a latent that is not kept is the embedding's bias; here it is 0 in both.
    """

    def __init__(
        self, *, size: int, patch: int, width: int, depth: int, heads: int, latents: int, code_dim: int,
        pixel_width: int, multipliers: Sequence[int], blocks: int, groups: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grid = size // patch
        if patch != 2 ** (len(multipliers) - 1):
            raise ValueError(f"patch {patch}: {len(multipliers)} levels of the pixel decoder enlarge by a power of 2")
        scale = width**-0.5
        self.embed = nn.Linear(code_dim, width)
        self.class_token = nn.Parameter(scale * torch.randn(1, 1, width))
        self.mask_token = nn.Parameter(scale * torch.randn(1, 1, width))
        self.positions = nn.Parameter(scale * torch.randn(1, self.grid**2 + 1, width))
        self.latent_positions = nn.Parameter(scale * torch.randn(1, latents, width))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.widen = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, PIXELS, 1))
        self.pixels = PixelDecoder(PIXELS, pixel_width, multipliers, blocks, groups)
        init_linear(self)

    def forward(self, latents: Tensor, kept: Tensor) -> Tensor:
        """`kept` (B,L) bool."""
        b, places = len(latents), self.grid**2
        x = torch.cat([self.class_token, self.mask_token.expand(-1, places, -1)], dim=1) + self.positions
        codes = self.embed(latents) * kept[:, :, None] + self.latent_positions
        x = self.norm_in(torch.cat([x.expand(b, -1, -1), codes], dim=1))
        for block in self.blocks:
            x = block(x)
        x = self.norm_out(x[:, 1 : 1 + places]).transpose(1, 2).reshape(b, -1, self.grid, self.grid)
        return 5 * (self.pixels(self.widen(x)).mean(1, keepdim=True) - 0.5)


class ResBlock(nn.Module):
    """(B,C,h,w) to (B,D,h,w): twice norm, SiLU and 3x3 convolution, added to the input.

    Where D is not C, a 1x1 convolution of the block's own output is added instead, as the released MaskGIT-VQGAN
    has it.
    """

    def __init__(self, channels: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=1e-6)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        if channels != channels_out:
            self.shortcut = nn.Conv2d(channels_out, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.shortcut(h) if hasattr(self, "shortcut") else x)


class PixelDecoder(nn.Module):
    """(B,C,G,G) to (B,3,S,S). Source: MaskGIT-VQGAN, the decoder that TiTok and HiMTok use (no attention)."""

    def __init__(self, channels: int, width: int, multipliers: Sequence[int], blocks: int, groups: int) -> None:
        super().__init__()
        widths = [width * multiplier for multiplier in reversed(multipliers)]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        layers += [ResBlock(widths[0], widths[0], groups) for _ in range(blocks)]
        for i, (before, after) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            layers += [ResBlock(before if j == 0 else after, after, groups) for j in range(blocks)]
            if i < len(widths) - 1:
                layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(after, after, 3, padding=1)]
        layers += [nn.GroupNorm(groups, widths[-1], eps=1e-6), nn.SiLU(), nn.Conv2d(widths[-1], 3, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ConvEncoder(nn.Module):
    """(B,1,S,S) in [0,1] to latents (B,L,D): convolutions of stride 2, one level per width, and a linear map."""

    def __init__(self, *, size: int, widths: Sequence[int], groups: int, latents: int, code_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip([1, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(groups, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1] * (size >> len(widths)) ** 2, latents * code_dim)
        self.shape = (latents, code_dim)

    def forward(self, mask: Tensor) -> Tensor:
        return self.head(self.layers(2 * mask - 1).flatten(1)).unflatten(1, self.shape)


class ConvDecoder(nn.Module):
    """Latents (B,L,D) to logits (B,1,S,S): a linear map, and a transposed convolution for each doubling. A latent
    that is not kept is 0."""

    def __init__(self, *, size: int, widths: Sequence[int], groups: int, latents: int, code_dim: int) -> None:
        super().__init__()
        side, deepest = size >> len(widths), widths[-1]
        self.shape = (deepest, side, side)
        self.head = nn.Linear(latents * code_dim, deepest * side**2)
        layers: list[nn.Module] = []
        for before, after in zip(widths[::-1], [*widths[-2::-1], 1], strict=True):
            layers += [nn.GroupNorm(groups, before), nn.SiLU(), nn.ConvTranspose2d(before, after, 4, 2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor, kept: Tensor) -> Tensor:
        """`kept` (B,L) bool."""
        return self.layers(self.head((latents * kept[:, :, None]).flatten(1)).unflatten(1, self.shape))
