"""How far an image is from what a tokenizer makes: one number per image and signal, lower is "its own".

Every signal can be had with the tokenizer's own encoder or with an inverse decoder. Signals of one call share
encoder and decoder passes: QuantLoss alone never decodes; QuantLoss, EncLoss, calibrated and combined together
take two of each and one quantization, as many passes as AEDR alone.

Errors are means over all values of an image, not norms: they rank images alike, and so does their product.
Deviation: pixel errors are on the [0,1] scale; the released code has most families' on [-1,1], four times as large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import Tensor

from unforge.provenance import baselines, search
from unforge.provenance.config import EPS, Search, Tracer
from unforge.provenance.contract import Codec, Encoder, Quantized


def mse(left: Tensor, right: Tensor) -> Tensor:
    """Mean squared difference per image, (B,...) and (B,...) to (B,) float64."""
    return (left.float() - right.float()).square().flatten(1).mean(dim=1).double()


class Passes:
    """What the signals of one batch are made of, each computed when it is first asked for, and once."""

    def __init__(
        self,
        tokenizer: Codec,
        image: Tensor,
        encoder: Encoder | None = None,
        settings: Search | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """`image` (B,3,S,S) in [0,1] at the tokenizer's size; `encoder`: None is the tokenizer's own.

        ValueError for another size: resampling would destroy the signal, so nothing is resampled here.
        """
        size = tokenizer.image_size
        if image.ndim != 4 or tuple(image.shape[1:]) != (3, size, size):
            raise ValueError(f"images of shape {tuple(image.shape)}: the tokenizer takes (B,3,{size},{size})")
        self.tokenizer, self.image = tokenizer, image
        self.encoder: Encoder = tokenizer if encoder is None else encoder
        self.settings, self.tracer = settings or Search(), tracer or Tracer()

    @cached_property
    def features(self) -> Tensor:
        """f, (B,C,h,w)."""
        return self.encoder.encode(self.image)

    @cached_property
    def quantized(self) -> Quantized:
        """f_Z and tokens nearest to f; of a multi-scale tokenizer, greedily from coarse to fine."""
        return self.tokenizer.quantize(self.features)

    @cached_property
    def found(self) -> search.Found:
        """f_Z and tokens of the token search."""
        return search.search(search.scales(self.tokenizer), self.features, self.quantized.tokens, self.settings)

    @cached_property
    def once(self) -> Tensor:
        """Rec(x) = D(f) without quantization, (B,3,S,S), clamped to [0,1]. Source: released code clamps."""
        return self.tokenizer.decode(self.features).clamp(0, 1)

    @cached_property
    def twice(self) -> Tensor:
        """Rec(Rec(x))."""
        return self.tokenizer.decode(self.encoder.encode(self.once)).clamp(0, 1)

    @cached_property
    def round_trip(self) -> Tensor:
        """D(f_Z): the image through encoder, quantizer and decoder."""
        return self.tokenizer.decode(self.quantized.features).clamp(0, 1)


def quant_loss(passes: Passes) -> Tensor:
    """Distance of f to the codes. Source: iar_provenance, Eq. 4."""
    return mse(passes.features, passes.quantized.features)


def quant_loss_opt(passes: Passes) -> Tensor:
    """QuantLoss with searched tokens, for multi-scale tokenizers. Source: iar_provenance, Alg. 3."""
    return mse(passes.features, passes.found.features)


def enc_loss(passes: Passes) -> Tensor:
    """Error of Rec(x), without quantization. Source: iar_provenance, Sec. 3 (EncLoss)."""
    return mse(passes.once, passes.image)


def enc_loss_calibrated(passes: Passes) -> Tensor:
    """Error of Rec(x) over that of Rec(Rec(x)): how much of it is the image's own complexity. Source:
    iar_provenance, Eq. 8. With the tokenizer's own encoder this is AEDR as the paper has it."""
    return (enc_loss(passes) + EPS) / (mse(passes.twice, passes.once) + EPS)


def combined(passes: Passes) -> Tensor:
    """QuantLoss times calibrated EncLoss. Source: iar_provenance, Eq. 9."""
    return quant_loss(passes) * enc_loss_calibrated(passes)


def quant_loss_opt_kept(passes: Passes) -> Tensor:
    """QuantLoss Opt, or the greedy tokens' where those are nearer: the search that is not `faithful`. Ours."""
    return torch.minimum(quant_loss(passes), quant_loss_opt(passes))


def combined_opt(passes: Passes) -> Tensor:
    """QuantLoss Opt times calibrated EncLoss: the paper's VAR row."""
    return quant_loss_opt(passes) * enc_loss_calibrated(passes)


def reconstruction(passes: Passes) -> Tensor:
    """Error of the image through encoder, quantizer and decoder. A baseline of the paper, with the own encoder."""
    return mse(passes.round_trip, passes.image)


def aedr_homogeneity(passes: Passes) -> Tensor:
    """Calibrated EncLoss times the image's homogeneity: AEDR as its authors have it, with the own encoder."""
    return enc_loss_calibrated(passes) * baselines.homogeneity(passes.image)


def latent_tracer(passes: Passes) -> Tensor:
    """Error that is left after a latent was fitted to the image. A baseline, with the own encoder."""
    begin = passes.features if passes.tracer.begin == "encoded" else passes.quantized.features
    return baselines.trace(passes.tokenizer, passes.image, begin, passes.tracer)


SIGNALS: dict[str, Callable[[Passes], Tensor]] = {
    signal.__name__: signal
    for signal in (
        quant_loss,
        enc_loss,
        enc_loss_calibrated,
        combined,
        quant_loss_opt,
        quant_loss_opt_kept,
        combined_opt,
        reconstruction,
        aedr_homogeneity,
        latent_tracer,
    )
}
"""By name. AEDR without the homogeneity term is `enc_loss_calibrated` with the own encoder."""

PAPER = ("quant_loss", "enc_loss", "enc_loss_calibrated", "combined")


@torch.no_grad()
def measure(
    tokenizer: Codec,
    image: Tensor,
    names: Iterable[str] = PAPER,
    encoder: Encoder | None = None,
    settings: Search | None = None,
    tracer: Tracer | None = None,
) -> dict[str, Tensor]:
    """The named signals of a batch, each (B,) float64, in the order asked for.

    `image` (B,3,S,S) in [0,1], `encoder` an inverse decoder (None: the tokenizer's own encoder). Tokenizer and
    encoder should be in eval mode. ValueError for an unknown signal, an image of another size, or a token
    search in a tokenizer without scales.
    """
    names = list(names)
    unknown = sorted(set(names) - set(SIGNALS))
    if unknown:
        raise ValueError(f"no signal {unknown}: there is {', '.join(SIGNALS)}")
    passes = Passes(tokenizer, image, encoder, settings, tracer)
    return {name: SIGNALS[name](passes) for name in names}
