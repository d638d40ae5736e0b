"""What provenance asks of a tokenizer. `unforge.tokenizers` fulfils it; so does a toy of a few lines.

Shape legend: B images, S image side (pixels), C feature channels, h = w side of the feature map, N tokens, V codes,
p side of the token map of one scale.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Quantized(Protocol):
    """What quantizing gives."""

    features: Tensor
    """(B,C,h,w), f_Z: features made of codes only."""
    tokens: Tensor
    """(B,N) int64, scales coarse to fine; bits (B,N,d) for a bitwise quantizer."""


class Encoder(Protocol):
    """An encoder or an inverse decoder."""

    def encode(self, image: Tensor) -> Tensor:
        """(B,3,S,S) in [0,1] to f (B,C,h,w), the space the quantizer works in."""
        ...


class Codec(Encoder, Protocol):
    """A tokenizer: encoder, quantizer and decoder of one family."""

    image_size: int
    """Pixels, square."""

    def quantize(self, features: Tensor) -> Quantized:
        """f (B,C,h,w) to f_Z and tokens, greedily."""
        ...

    def lookup(self, tokens: Tensor) -> Tensor:
        """Tokens to f_Z (B,C,h,w)."""
        ...

    def decode(self, features: Tensor) -> Tensor:
        """f or f_Z to an image (B,3,S,S), nominally in [0,1]."""
        ...


class Trainable(Codec, Protocol):
    """A tokenizer whose encoder side can be told apart."""

    def encoder_modules(self) -> list[nn.Module]:
        """What an inverse decoder trains."""
        ...


class Scales(Protocol):
    """A multi-scale quantizer: f_Z is the sum over scales of codes brought to the full grid."""

    scales: tuple[int, ...]
    """Sides p of the token maps, coarse to fine."""

    codebook: Tensor
    """(V,C), shared by all scales."""

    def enlarged(self, scale: int, vectors: Tensor) -> Tensor:
        """What code vectors (B,C,p,p), or mixtures of them, of scale number `scale` (from 0) add to f_Z (B,C,h,w).

        Differentiable in `vectors`.
        """
        ...
