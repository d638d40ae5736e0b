"""The method: backbone, head, loss and prediction.

How the maps of a handcrafted extractor enter the network is not in the paper; its counts narrow it down.
Relative to the dense single-scale UniFormer (Table 2) all four extractor rows have 1.05 times the parameters,
LFF alone 1.01: the branch has 1.6 to 2.1 M parameters. Sobel and Bayar rows have 1.01 times the FLOPs, LFF
alone 1.012: the branch costs less than about 0.1 G MACs, so most of its parameters act on at most some 50
positions, not on a grid of tokens (16x16 tokens would cost 0.4 G).
ASSUMPTION(paper): a local path (convolution with the patch embedding's stride, added to the tokens of stage 1)
and a global path (the maps' energy on a 32x32 division of the image, through two linear layers, added to every
token of stage 4). All eight printed multipliers come out of this reading; it is not confirmed by anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.methods.sparsevit.config import Config
from unforge.nn.extractors import EXTRACTORS, GlobalPath, LocalPath
from unforge.nn.heads import HEADS
from unforge.nn.uniformer import UniFormer
from unforge.nn.vit import VOLO, PlainViT
from unforge.types import Batch, Losses, Prediction

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class SparseViT(nn.Module):
    """SparseViT and its ablation rows.

    Parameters that are never used (each SparseBlock's `pos_embed`, the norms of stages 1 and 2, and the norm of
    stage 3 with a single-scale head) do not require gradients: official state dicts load, and
    DistributedDataParallel works without a search for unused parameters.
    `encoder_net` and `lmu` are the names of backbone and head in official state dicts.
    """

    EXTRAS = ("attention_first", "attention_last")
    """`predict(..., extras=True)`: attention of the first and last block of stage 3 (of the transformer blocks,
    for ViT and VOLO), (B,a,b,c,d): how much the anchor token (a,b) looks at cell (c,d), mean over heads, on grids
    of at most 32x32 (see `nn.attention.Attention.weights`). Source: SparseViT, Fig. 4."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder_net, width, strides = _backbone(config)
        channels: list[int] = self.encoder_net.channels  # type: ignore[assignment]
        if config.backbone != "uniformer" and config.head != "single":
            raise ValueError(f"head {config.head!r} fuses several maps, and {config.backbone!r} has one: use 'single'")
        self.lmu = HEADS[config.head](channels, config.fusion_width, config.fusion_scale)
        if config.backbone == "uniformer" and config.head == "single":
            self.encoder_net.norm3.requires_grad_(False)
        self.beside = False
        """Whether the local path sees the image beside the extractor's maps, and so makes the first tokens alone."""
        self.extractor: nn.Module | None = None
        self.local_path: nn.Module | None = None
        self.global_path: nn.Module | None = None
        if config.extractor:
            self.extractor = EXTRACTORS[config.extractor]()
            self.beside = config.extractor_overlap and config.extractor != "stem"
            maps = self.extractor.maps + (3 if self.beside else 0)
            self.local_path = LocalPath(maps, width, strides, config.extractor_overlap)
            if self.beside or config.extractor == "stem":
                self.encoder_net.without_image()
            if config.extractor != "stem":
                self.global_path = GlobalPath(channels[-1], config.context_grid)
        self.register_buffer("mean", torch.tensor(MEAN, device="cpu").view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD, device="cpu").view(1, 3, 1, 1), persistent=False)

    def prepared(self, image: Tensor) -> Tensor:
        """`image` (B,3,H,W) in [0,1] at the configured size (bilinear, no antialiasing, as the released code)."""
        size = self.config.input_size
        if size is None or tuple(image.shape[2:]) == (size, size):
            return image
        return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)

    def paths(self, image: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Normalised image (None where the local path alone makes the first tokens), and what the extractor gives
        to the first and the last stage's tokens (or None)."""
        normalised = ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        if self.extractor is None or self.local_path is None:
            return normalised, None, None
        maps = self.extractor(image)
        late = None if self.global_path is None else self.global_path(maps)
        if self.beside:
            return None, self.local_path(torch.cat([normalised, maps], dim=1)), late
        return None if self.config.extractor == "stem" else normalised, self.local_path(maps), late

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """The backbone's maps as (B,C,h,w), named as in the released code: `third1`..., `third`, `last1`, `last`.

        `image` (B,3,H,W) in [0,1] of any size.
        """
        maps = self.encoder_net(*self.paths(self.prepared(image)))
        late = [m for m in maps if m.shape[-1] == maps[-1].shape[-1]]
        early = maps[: len(maps) - len(late)]
        names = [*(f"third{i + 1}" for i in range(len(early) - 1)), "third"][-len(early) :] if early else []
        names += [*(f"last{i + 1}" for i in range(len(late) - 1)), "last"]
        return {name: x.permute(0, 3, 1, 2) for name, x in zip(names, maps, strict=True)}

    def logits(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1], already at the configured size, to logits (B,1,H,W)."""
        height, width = image.shape[2:]
        coarse = self.lmu(self.encoder_net(*self.paths(image)))
        # Padding at the bottom and the right is cut off: the upsampled map covers whole tokens.
        stride = self.finest_stride
        size = (coarse.shape[2] * stride, coarse.shape[3] * stride)
        fine = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        return fine[:, :, :height, :width]

    @property
    def finest_stride(self) -> int:
        """Pixels per cell of the finest map the head uses."""
        config = self.config
        if config.backbone == "vit":
            return _product(config.vit_strides)
        if config.backbone == "volo":
            return 2 * _product(config.volo_strides)
        return _product(config.strides if config.head == "single" else config.strides[:3])

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] to logits (B,1,h,w) at the configured size."""
        return self.logits(self.prepared(image))

    def loss(self, batch: Batch) -> Losses:
        """Binary cross-entropy and, where configured, Dice. Terms: `bce`, `dice`. ValueError without masks.

        Source: released code (BCE with logits). The mask is resized by nearest neighbour.
        """
        if batch.mask is None:
            raise ValueError("SparseViT learns from masks: the batch has none")
        logits = self(batch.image).float()
        mask = batch.mask.to(logits)
        if mask.shape[2:] != logits.shape[2:]:
            mask = F.interpolate(mask, size=tuple(logits.shape[2:]), mode="nearest")
        terms = {"bce": F.binary_cross_entropy_with_logits(logits, mask)}
        total = self.config.bce * terms["bce"]
        if self.config.dice:
            probability = logits.sigmoid()
            terms["dice"] = 1 - (2 * (probability * mask).sum() + 1) / (probability.sum() + mask.sum() + 1)
            total = total + self.config.dice * terms["dice"]
        return Losses(total=total, terms=terms)

    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """Probability of manipulation (B,1,h,w) at the configured size (the image's own, when that is None).

        `image` (B,3,H,W) in [0,1], any size from 1x1.
        """
        image = self.prepared(image)
        mask = self.logits(image).float().sigmoid()
        if not extras:
            return Prediction(mask=mask)
        normalised, early, _ = self.paths(image)
        first, last = self.encoder_net.attention_maps(normalised, early)
        return Prediction(mask=mask, extras={"attention_first": first, "attention_last": last})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Two groups: matrices and filters with `weight_decay`; biases, norms, layer scales, fusion vectors and
        learnt positions without. Source: released code (timm's rule: one dimension, or bias)."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            position = name.endswith("pos_embed.weight") and parameter.shape[0] == 1
            (free if parameter.ndim <= 1 or position else decayed).append(parameter)
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def _product(values: tuple[int, ...]) -> int:
    result = 1
    for value in values:
        result *= value
    return result


def _rates(config: Config, scheduled: tuple[int, ...]) -> tuple[int, ...]:
    if not config.sparse:
        return (1,)
    return (config.fixed_rate,) if config.fixed_rate else scheduled


def _backbone(config: Config) -> tuple[nn.Module, int, tuple[int, ...]]:
    """The backbone, the width of its first tokens and their strides."""
    if config.backbone == "vit":
        vit = PlainViT(
            dim=config.vit_dim,
            depth=config.vit_depth,
            heads=config.vit_heads,
            mlp_ratio=config.mlp_ratio,
            drop_path=config.drop_path,
            strides=config.vit_strides,
            grid=config.vit_grid,
            rates=_rates(config, config.rates3),
        )
        return vit, config.vit_dim, config.vit_strides
    if config.backbone == "volo":
        volo = VOLO(
            dims=config.volo_dims,
            depths=config.volo_depths,
            heads=config.volo_heads,
            hidden=config.volo_hidden,
            mlp_ratio=config.volo_mlp_ratio,
            drop_path=config.drop_path,
            strides=config.volo_strides,
            grid=config.volo_grid,
            rates=_rates(config, config.rates3),
        )
        return volo, config.volo_dims[0], config.volo_strides
    uniformer = UniFormer(
        dims=config.dims,
        depths=config.depths,
        strides=config.strides,
        head_dim=config.head_dim,
        mlp_ratio=config.mlp_ratio,
        drop_path=config.drop_path,
        layer_scale=config.layer_scale,
        rates3=_rates(config, config.rates3),
        rates4=_rates(config, config.rates4),
        runs3=len(config.rates3),
        runs4=len(config.rates4),
    )
    return uniformer, config.dims[0], config.strides[:1]


def build(config: Config, assets: Mapping[str, Path]) -> SparseViT:
    """SparseViT for `config`. Asset `backbone`: a checkpoint file of UniFormer (or of this method) to start from."""
    method = SparseViT(config)
    if "backbone" in assets:
        from unforge.methods.sparsevit.official import load_official, read_checkpoint

        load_official(method, read_checkpoint(assets["backbone"]))
    return method
