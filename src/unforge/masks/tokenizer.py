"""A mask as a short row of tokens, coarse to fine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.masks import hierarchical, networks
from unforge.types import Losses, Recipe

HIMTOK = Recipe(
    source="ours: HiMTok does not give the recipe of its tokenizer's first stage; AdamW and rate of its second",
    optimiser="adamw",
    lr=4e-5,
    min_lr=0.0,
    batch=64,
    epochs=1,
    samples_per_epoch=1_000_000,
    warmup_epochs=0.03,
    weight_decay=0.05,
    betas=(0.9, 0.999),
    clip=1.0,
)
QUICK = replace(HIMTOK, source="ours: what learns in a minute on one CPU thread", lr=3e-3, min_lr=3e-5, weight_decay=0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults: HiMTok's mask tokenizer, which TamperTok takes. Source: its released configuration and code."""

    size: int = 256
    """Side of a mask (pixels)."""
    latents: int = 32
    codes: int = 1024
    code_dim: int = 12
    encoder: Literal["vit", "conv"] = "vit"
    """`conv`: for the small scale, where transformers on pixels learn nothing in a minute."""
    patch: int = 16
    width: int = 1024
    depth: int = 24
    """Blocks of the encoder, and of the decoder."""
    heads: int = 16
    pixel_width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Of the pixel decoder's width, the finest level first."""
    pixel_blocks: int = 2
    groups: int = 32
    """Of group norms."""
    widths: tuple[int, ...] = ()
    """`conv`: channels of each level, the finest first."""
    commitment: float = 0.01
    """Weight of the commitment term; the codebook term has 1."""
    truncated: float = 1.0
    """Share of the training masks that are decoded from a prefix of random length (1 to all, equally likely)."""
    dice: float = 0.25
    """Weight of Dice beside binary cross-entropy."""
    hml: hierarchical.Form = "paper"
    """Form of the hierarchical mask loss."""
    prefixes: int = 3
    """Prefix lengths drawn for it at each step."""
    prefix_weight: float = 3.0
    """Of the mean over these. ASSUMPTION(paper): as HiMTok's second stage."""
    ksd: float = 1.0
    """Weight of the splatting loss in fine-tuning. ASSUMPTION(paper): it stands beside the hierarchical mask loss
    without a weight."""
    k: int = 10
    """Codes of a neighbourhood. Source: TamperTok, Tab. 4."""
    temperature: float = 0.02
    """Of the splatting weights; see `splatting`. The small one's 128 codes lie further apart: 0.05 leaves a code about
    two thirds of the weight of its ten."""
    neighbourhood: Literal["topk", "centroid"] = "topk"
    unquantised_steps: int = 0
    """Training steps before the codebook is started from data and used. Ours: quantised from the first step, small
    tokenizers collapse to a few codes."""
    revive_after: int = 20
    """Training steps without being chosen after which a code is put onto a latent. Ours."""
    recipe: Recipe = field(default_factory=lambda: HIMTOK)
    tuning_lr: float = 2e-5
    """Source: TamperTok, A.2 (base rate)."""

    def for_steps(self, steps: int) -> Config:
        """The same for a pretraining of `steps`: the first 30 % of them are not quantised."""
        return replace(self, unquantised_steps=round(0.3 * steps))


SMALL = Config(
    size=64,
    latents=8,
    codes=128,
    encoder="conv",
    widths=(16, 32, 64, 128),
    groups=8,
    truncated=0.5,
    prefixes=1,
    ksd=0.1,
    temperature=0.05,
    recipe=QUICK,
    tuning_lr=1e-3,
)


class Codebook(nn.Module):
    """Codes that a learnt linear map takes to where they are compared, by angle. Source: HiMTok, released code."""

    ready: Tensor
    idle: Tensor

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes))
        self.projection = nn.Linear(dim, dim, bias=False)
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64))

    def forward(self) -> Tensor:
        """(K,D), of norm 1."""
        return F.normalize(self.projection(self.embedding), dim=1)

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """Tokens (...) of latents (...,D) of norm 1: the code at the smallest angle, of equals the lowest."""
        return (latents @ self().T).argmax(-1)

    @torch.no_grad()
    def prepare(self, latents: Tensor, revive_after: int) -> None:
        """Before a training step: start the codebook from latents (N,D), or move codes that were not chosen for
        `revive_after` steps onto latents drawn at random. Draws from torch's generator."""
        if not self.ready:
            self.projection.weight.copy_(torch.eye(latents.shape[1]))
            self.embedding.copy_(drawn(latents, len(self.embedding)))
            self.ready.fill_(True)
        else:
            dead = (self.idle >= revive_after).nonzero()[:, 0]
            if not len(dead):
                return
            onto = drawn(latents, len(dead))
            self.embedding[dead] = torch.linalg.solve(self.projection.weight, onto.T).T
            self.idle[dead] = 0
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(self.embedding.data, 0)
            dist.broadcast(self.projection.weight.data, 0)

    @torch.no_grad()
    def chosen(self, tokens: Tensor) -> None:
        """After a training step: note which codes were chosen."""
        seen = torch.bincount(tokens.flatten(), minlength=len(self.embedding))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(seen)
        self.idle.add_(1).masked_fill_(seen > 0, 0)


def drawn(latents: Tensor, count: int) -> Tensor:
    """`count` of the rows (N,D) at random, each once before any twice, with noise of 1 % so that no two are equal."""
    order = torch.cat([torch.randperm(len(latents)) for _ in range(-(-count // len(latents)))])[:count]
    found = latents[order.to(latents.device)]
    return found + 0.01 * torch.randn(found.shape).to(found)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What encoding gives in training."""

    latents: Tensor
    """(B,L,D) of norm 1, not quantised."""
    quantised: Tensor
    """(B,L,D): codes, whose gradient goes to the latents unchanged."""
    tokens: Tensor
    """(B,L) int64."""


class MaskTokenizer(nn.Module):
    """Binary masks to rows of tokens and back. Source: HiMTok; TamperTok, Sec. 3.2.

    Masks are padded to a square at the bottom and the right and brought to `config.size` (area averages;
    Deviation: HiMTok interpolates without averaging). `loss` is the pretraining; `train.masks` has the fine-tuning.
    """

    step: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        shape: dict[str, Any] = {"size": config.size, "latents": config.latents, "code_dim": config.code_dim}
        if config.encoder == "conv":
            if not config.widths or config.size % 2 ** len(config.widths):
                raise ValueError(f"size {config.size}, widths {config.widths}: each level halves the side")
            shape |= {"widths": config.widths, "groups": config.groups}
            self.encoder: nn.Module = networks.ConvEncoder(**shape)
            self.decoder: nn.Module = networks.ConvDecoder(**shape)
        elif config.encoder == "vit":
            if config.size % config.patch:
                raise ValueError(f"size {config.size}: give a multiple of the patch, {config.patch}")
            shape |= {"patch": config.patch, "width": config.width, "depth": config.depth, "heads": config.heads}
            self.encoder = networks.ViTEncoder(**shape)
            self.decoder = networks.ViTDecoder(
                **shape, pixel_width=config.pixel_width, multipliers=config.multipliers, blocks=config.pixel_blocks,
                groups=config.groups,
            )  # fmt: skip
        else:
            raise ValueError(f"encoder {config.encoder!r}: vit and conv are accepted")
        self.codes = Codebook(config.codes, config.code_dim)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def codebook(self) -> Tensor:
        """(K,D) of norm 1: the codes as they are compared and decoded."""
        return self.codes()

    def squared(self, mask: Tensor) -> Tensor:
        """(B,1,S,S) in [0,1] of masks (B,1,H,W)."""
        if mask.ndim != 4 or mask.shape[1] != 1:
            raise ValueError(f"masks {tuple(mask.shape)}: give (B,1,H,W)")
        height, width = mask.shape[2:]
        side = max(height, width)
        mask = F.pad(mask.float(), (0, side - width, 0, side - height))
        return mask if side == self.config.size else F.interpolate(mask, size=(self.config.size,) * 2, mode="area")

    def crop_to(self, probability: Tensor, shape: tuple[int, int]) -> Tensor:
        """(B,1,h,w): the part of the square (B,1,S,S) that an image of `shape` (H, W) covers."""
        side, full = max(shape), probability.shape[-1]
        height, width = (max(1, round(full * length / side)) for length in shape)
        return probability[..., :height, :width]

    def features(self, mask: Tensor) -> Tensor:
        """Latents (B,L,D) of norm 1 of masks (B,1,S,S), always in float32."""
        latents = self.encoder(mask)
        with torch.autocast(latents.device.type, enabled=False):
            return F.normalize(latents.float(), dim=-1)

    @torch.no_grad()
    def encode(self, mask: Tensor) -> Tensor:
        """Tokens (B,L) int64 of masks (B,1,H,W), 0 or 1, of any size."""
        return self.codes.nearest(self.features(self.squared(mask)))

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B,p,D) of tokens (B,p). ValueError for more than L tokens, or one that is not in the codebook."""
        if tokens.ndim != 2 or not 0 < tokens.shape[1] <= self.config.latents:
            raise ValueError(f"tokens {tuple(tokens.shape)}: give (B,p), 1 <= p <= {self.config.latents}")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.codes:
            raise ValueError(f"token {int(tokens.min())} .. {int(tokens.max())}: there is 0 .. {self.config.codes - 1}")
        return F.embedding(tokens, self.codebook())

    def decode(self, tokens: Tensor) -> Tensor:
        """Probability (B,1,S,S) of tokens (B,p); the L - p later latents are 0."""
        return self.logits(self.lookup(tokens)).sigmoid()

    def decode_soft(self, weights: Tensor) -> Tensor:
        """Probability (B,1,S,S) of the mean codes by weights (B,p,K), whose rows sum to 1; one-hot rows give what
        `decode` gives. Deviation: HiMTok's soft decoding alone takes codes that are not of norm 1."""
        if weights.ndim != 3 or weights.shape[2] != self.config.codes:
            raise ValueError(f"weights {tuple(weights.shape)}: give (B,p,{self.config.codes})")
        codes = self.codebook()
        return self.logits(weights.to(codes.dtype) @ codes).sigmoid()

    def logits(self, latents: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B,1,S,S) of latents (B,p,D), of which the first `lengths` (B,) are kept (None: all)."""
        given, all_ = latents.shape[1], self.config.latents
        kept = torch.arange(all_, device=latents.device).expand(len(latents), -1)
        kept = kept < (given if lengths is None else lengths[:, None])
        return self.decoder(F.pad(latents, (0, 0, 0, all_ - given)), kept)

    def quantise(self, latents: Tensor) -> Encoded:
        """Nearest codes of latents; in training mode a step of the codebook's training."""
        if self.training:
            self.codes.prepare(latents.detach().flatten(0, 1), self.config.revive_after)
        tokens = self.codes.nearest(latents.detach())
        if self.training:
            self.codes.chosen(tokens)
        found = F.embedding(tokens, self.codebook())
        return Encoded(latents=latents, quantised=latents + (found - latents).detach(), tokens=tokens)

    def quantiser_terms(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """`codebook` moves codes to latents, `commitment` latents to codes."""
        found = F.embedding(encoded.tokens, self.codebook())
        return {
            "codebook": F.mse_loss(found, encoded.latents.detach()),
            "commitment": F.mse_loss(encoded.latents, found.detach()),
        }

    def loss(self, mask: Tensor) -> Losses:
        """Pretraining on masks (B,1,H,W): binary cross-entropy and Dice of a decoding from a prefix, and the terms of
        the quantiser.

        In training mode each call is a step: it counts, starts the codebook after `unquantised_steps`, revives codes.
        ASSUMPTION(paper): the loss of the tokenizer's first stage is not given; prefixes learn the whole mask.
        """
        mask = self.squared(mask)
        latents, terms = self.features(mask), {}
        total = torch.zeros((), device=mask.device)
        if not self.training or int(self.step) >= self.config.unquantised_steps:
            encoded = self.quantise(latents)
            terms = dict(self.quantiser_terms(encoded))
            total, latents = terms["codebook"] + self.config.commitment * terms["commitment"], encoded.quantised
        lengths = self.lengths(len(mask), mask.device) if self.training else None
        bce, dice = hierarchical.terms(self.logits(latents, lengths), mask)
        if self.training:
            self.step += 1
        terms |= {"bce": bce, "dice": dice}
        return Losses(total=total + bce + self.config.dice * dice, terms=terms)

    def lengths(self, count: int, device: torch.device) -> Tensor:
        """(count,) int64 of prefix lengths for a training step; draws from torch's generator."""
        whole = torch.rand(count) >= self.config.truncated
        return torch.randint(1, self.config.latents + 1, (count,)).masked_fill(whole, self.config.latents).to(device)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and the codebook."""
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        decayed = [p for n, p in named if p.ndim > 1 and not n.startswith("codes.")]
        others = [p for n, p in named if p.ndim <= 1 or n.startswith("codes.")]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
