"""What every tokenizer is: encoder, quantizer, decoder, and how small ones are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.tokenizers.quantizers import straight_through
from unforge.types import Batch, Losses, Recipe

TRAINING = Recipe(
    source="ours: what learns in some hundred steps on one CPU thread",
    optimiser="adamw",
    lr=2e-3,
    min_lr=2e-5,
    batch=16,
    epochs=1,
    samples_per_epoch=12000,
    warmup_epochs=0.03,
    betas=(0.9, 0.99),
    clip=1.0,
)
"""Small tokenizers; no moving average, which would mix a code with what it was before it moved. Those of the paper's
scale come as released weights and are never trained here."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What a quantizer makes of features."""

    features: Tensor
    """f_Z (B,C,h,w); its gradient goes to the features unchanged."""
    tokens: Tensor
    """(B,N) int64, row by row; several scales: coarse to fine. Infinity: bits (B,N,d) bool."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What every family has; the values are those most releases share, a family's own stand in its `Config`."""

    image_size: int = 256
    """Side of an image (pixels)."""
    width: int = 128
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Of the width, at each level; each level has half the side of the one before."""
    blocks: int = 2
    """Residual blocks of a level."""
    groups: int = 32
    """Of the group norms."""
    commitment: float = 0.25
    """Weight of the commitment term."""
    unquantised_steps: int = 0
    """Training steps before the codebook is started from data and used. Ours, for small tokenizers: quantised from
    the first step they collapse to a few codes."""
    revive_after: int = 20
    """Training steps without being chosen after which a code is put onto a feature. Ours."""
    recipe: Recipe = field(default_factory=lambda: TRAINING)

    def for_steps(self, steps: int) -> Self:
        """The same for a run of `steps`: the first 30 % of them are not quantised."""
        return replace(self, unquantised_steps=round(0.3 * steps))

    @property
    def factor(self) -> int:
        """Side of an image over the side of its token map."""
        return int(2 ** (len(self.multipliers) - 1))


@dataclass(frozen=True, kw_only=True)
class InverseRecipe:
    """How an inverse decoder is trained: Adam on the mean squared error to f_Z, decoder and codebook frozen."""

    source: str
    epochs: int
    batch: int
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    decay_every: int = 2
    """Epochs between two reductions of the learning rate."""
    decay: float = 0.9
    modules: tuple[str, ...] = ("encoder",)
    """Attributes of the tokenizer that are trained."""
    augmented: tuple[tuple[str, int], ...] = ()
    """(strength, epochs) of the augmented variant, in order; empty: the release has none."""
    augment_probability: float = 0.5


SCHEDULE = (("none", 5), ("weak", 5), ("medium", 20), ("strong", 20))
"""Source: released code of iar_provenance, `aug_schedule`; Tab. A2."""


class Tokenizer(nn.Module):
    """An image tokenizer. Images are (B,3,S,S) in [0,1]; features (B,C,h,w) are what the quantizer works on.

    A family gives `encoder`, `decoder` and `quantizer`; `quant_conv` and `post_quant_conv` where it has them, and
    `RANGE`, the pixel values its networks see.
    """

    RANGE: tuple[float, float] = (-1.0, 1.0)
    INVERSE: tuple[str, ...] = ("encoder",)
    """Modules that an inverse decoder trains."""
    encoder: nn.Module
    decoder: nn.Module
    quantizer: Any
    step: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        if config.image_size % config.factor:
            raise ValueError(f"image_size {config.image_size}: give a multiple of {config.factor}")
        self.config = config
        self.image_size = config.image_size
        self.grid = config.image_size // config.factor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def encode(self, image: Tensor) -> Tensor:
        """Features (B,C,h,w) of images. ValueError for another size."""
        if image.ndim != 4 or image.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"images {tuple(image.shape)}: the tokenizer takes (B, 3, {self.image_size}, {self.image_size})"
            )
        low, high = self.RANGE
        features = self.encoder(image * (high - low) + low)
        return self.quant_conv(features) if hasattr(self, "quant_conv") else features

    def quantize(self, features: Tensor) -> Quantized:
        """f_Z and tokens, always in float32 or finer."""
        with torch.autocast(features.device.type, enabled=False):
            features = features if features.dtype == torch.float64 else features.float()
            tokens = self.quantizer.tokens(features)
            with torch.no_grad():
                found = self.quantizer.lookup(tokens).to(features.dtype)
            return Quantized(features=straight_through(features, found), tokens=tokens)

    def lookup(self, tokens: Tensor) -> Tensor:
        """f_Z (B,C,h,w) of tokens: bit for bit what `quantize` gave with them. ValueError for tokens of another form
        or beyond the codebook."""
        return self.quantizer.lookup(tokens)

    def decode(self, features: Tensor) -> Tensor:
        """Images of f or f_Z, on the scale of [0,1] and not clamped: gradients are whole. `to_image` clamps."""
        if hasattr(self, "post_quant_conv"):
            features = self.post_quant_conv(features)
        low, high = self.RANGE
        return (self.decoder(features) - low) / (high - low)

    def to_image(self, features: Tensor) -> Tensor:
        """Images of f or f_Z in [0,1]: what a generator shows, and what the released signals compare with."""
        return self.decode(features).clamp(0, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Quantised reconstruction, not clamped."""
        return self.decode(self.quantize(self.encode(image)).features)

    def encoder_modules(self) -> list[nn.Module]:
        """What an inverse decoder trains."""
        return [self.get_submodule(name) for name in self.INVERSE]

    def loss(self, batch: Batch) -> Losses:
        """Mean squared and mean absolute error of the reconstruction (scale [-1,1]), and the quantizer's terms.

        In training mode each call is a step: it counts, starts the codebook after `unquantised_steps`, revives codes.
        All of that is in buffers. In eval mode always quantised, and nothing changes. Ours: the releases also use a
        discriminator and a perceptual network, whose weights cannot be had here.
        """
        features = self.encode(batch.image)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=features.device)
        if not self.training or int(self.step) >= self.config.unquantised_steps:
            with torch.autocast(features.device.type, enabled=False):
                features, terms = self._quantised(features.float())
            for name, value in terms.items():
                total = total + value * (self.config.commitment if name == "commitment" else 1.0)
        error = 2 * (self.decode(features) - batch.image)
        terms |= {"mse": error.square().mean(), "l1": error.abs().mean()}
        if self.training:
            self.step += 1
        return Losses(total=total + terms["mse"] + terms["l1"], terms=terms)

    def _quantised(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """f_Z and the quantizer's terms, by all codes it has; a step of its training in training mode."""
        if self.training:
            self.quantizer.prepare(features.detach(), self.config.revive_after)
        indices = self.quantizer.search(features)
        sums = self.quantizer.sums(indices)
        if self.training:
            self.quantizer.chosen(indices)
        return straight_through(features, sums[-1]), dict(self.quantizer.losses(features, sums))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and the codebook."""
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        decayed = [p for n, p in named if p.ndim > 1 and n != "quantizer.codebook"]
        others = [p for n, p in named if p.ndim <= 1 or n == "quantizer.codebook"]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

    @torch.no_grad()
    def settle(self, images: Tensor) -> None:
        """What a family does once it is trained, from photographs (N,3,S,S) of its training set: start the codebook
        if the run was too short for that. Draws from torch's generator."""
        if not getattr(self.quantizer, "ready", True):
            self.quantizer.prepare(self.encode(images[:64]), self.config.revive_after)

    def unreleased(self) -> set[str]:
        """Keys of the state dict that no release has."""
        return {"step", *(f"quantizer.{name}" for name in self.quantizer.STATE)}

    def trained(self) -> None:
        """Weights have come from elsewhere: do not start the codebook again."""
        self.step.fill_(self.config.unquantised_steps)
        if hasattr(self.quantizer, "ready"):
            self.quantizer.ready.fill_(True)


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of images (B,3,H,W) in [0,1]; infinite for equal ones."""
    return -10 * (image - reference).square().mean(dim=(1, 2, 3)).log10()


def usage(tokens: Tensor, codes: int) -> dict[str, float]:
    """How a set of tokens (or bits) uses `codes` codes: `codes`, how many are `used`, the `share` of them, and the
    `perplexity` (exponential of the entropy: `codes` when all are equally frequent)."""
    flat = tokens.reshape(-1, tokens.shape[-1]) if tokens.dtype == torch.bool else tokens.reshape(-1, 1)
    counts = torch.unique(flat, dim=0, return_counts=True)[1].double()
    frequency = counts / counts.sum()
    entropy = -(frequency * frequency.log()).sum()
    return {
        "codes": float(codes),
        "used": float(len(counts)),
        "share": len(counts) / codes,
        "perplexity": float(entropy.exp()),
    }


@torch.no_grad()
def measure(tokenizer: Tokenizer, images: Tensor, batch: int = 64) -> Mapping[str, float]:
    """`psnr` (mean over images, dB) of quantised reconstructions of (N,3,S,S) in [0,1], `psnr_unquantised` of f
    itself, and the `usage` of the tokens."""
    was_training = tokenizer.training
    tokenizer.eval()
    tokens, quality, unquantised = [], [], []
    for part in images.split(batch):
        features = tokenizer.encode(part)
        found = tokenizer.quantize(features)
        tokens.append(found.tokens)
        quality.append(psnr(tokenizer.to_image(found.features), part))
        unquantised.append(psnr(tokenizer.to_image(features), part))
    tokenizer.train(was_training)
    return {
        "psnr": float(torch.cat(quality).mean()),
        "psnr_unquantised": float(torch.cat(unquantised).mean()),
        **usage(torch.cat(tokens), tokenizer.quantizer.codes),
    }


def normalised(features: Tensor) -> Tensor:
    """(B,C,h,w) with l2 norm 1 at each place."""
    return F.normalize(features, dim=1)
