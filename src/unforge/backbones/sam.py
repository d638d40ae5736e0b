"""SAM (Segment Anything) through transformers' `SamModel`.

At small scale the same classes are a few layers each, and the image encoder's patch embedding (a 1x1 convolution there)
reads frozen tokens of the forensic backbone instead of pixels. The small one is pretrained to segment the manipulated
region that a point or a box names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.backbones import forensic, seen
from unforge.types import Batch, Losses, Recipe

TRAINED_ON = "pretraining"
NEEDS = ("forensic",)

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CELLS = 32
"""Prompts are drawn on a grid of this side over the image."""
JITTER = 0.1
"""Each side of a box is moved by up to this share of the box. Source: SAM, Sec. 4.1 (10 %, there with a normal
distribution)."""
EPSILON = 1e-6

RECIPE = Recipe(
    source="unforge: what learns within 60 s on one thread",
    optimiser="adamw",
    lr=2e-3,
    min_lr=2e-5,
    batch=8,
    epochs=20,
    samples_per_epoch=120,
    warmup_epochs=1.0,
    weight_decay=0.01,
    clip=1.0,
    ema=0.99,
    augment=("dihedral",),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes. Source: the defaults are SAM ViT-H."""

    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp: int = 5120
    window: int = 14
    global_layers: tuple[int, ...] = (7, 15, 23, 31)
    """Layers that attend over the whole image; the others within windows."""
    image_size: int = 1024
    """Side of what the encoder sees: pixels, or cells of forensic tokens."""
    patch: int = 16
    forensic: bool = False
    """Whether the encoder reads frozen tokens of the forensic backbone instead of pixels."""
    prompt: int = 256
    """Channels of the image embedding, of prompts and of the mask decoder."""
    decoder_layers: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    init: float = 0.02
    """Standard deviation of initial weights. ASSUMPTION(paper): transformers' default for the image encoder, 1e-10,
    is for loading weights; nothing can be learnt from it."""
    dice: float = 1.0
    """Weight of Dice beside binary cross-entropy, in the small pretraining."""
    recipe: Recipe = field(default_factory=lambda: RECIPE)

    @property
    def grid(self) -> int:
        """Side of the image embedding; masks have four times as many cells a side."""
        return self.image_size // self.patch


SMALL = Config(
    width=64,
    layers=2,
    heads=4,
    mlp=128,
    window=8,
    global_layers=(1,),
    image_size=16,
    patch=1,
    forensic=True,
    prompt=64,
    decoder_heads=4,
    decoder_mlp=128,
    init=0.1,
)


class Sam(nn.Module):
    """`model` is transformers'; its state dict has the official names behind the prefix `model.`.

    The positional encoding, which transformers ties between two places and makes trainable, is two equal constants.
    """

    def __init__(self, config: Config, traces: forensic.Forensic | None, model: Any) -> None:
        super().__init__()
        self.config = config
        self.forensic = traces.freeze() if traces is not None else None
        self.memory = forensic.Memory(seen.ROOM)
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN, device="cpu").view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD, device="cpu").view(1, 3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """Channels of prompts and of the image embedding."""
        return int(self.model.config.mask_decoder_config.hidden_size)

    @property
    def grid(self) -> int:
        """Side of the image embedding."""
        return int(self.model.config.prompt_encoder_config.image_embedding_size)

    def covered(self, size: tuple[int, int]) -> tuple[float, float]:
        """Share (height, width) of the square that an image of `size` (H,W) covers, from the top left corner.

        Pixels: the long side fills it and the rest is padding. Forensic tokens: all of it, as each cell averages over
        its share of the image.
        """
        if self.config.forensic:
            return 1.0, 1.0
        height, width = self._resized(size)
        return height / self.config.image_size, width / self.config.image_size

    def prepared(self, image: Tensor) -> Tensor:
        """What the encoder sees of `image` (B,3,H,W) in [0,1], any size.

        Forensic tokens (B,C,g,g) of the whole image; or pixels (B,3,S,S): the long side brought to S (bilinear,
        antialiased), normalised, padded with 0 at the bottom and the right. Source: SAM, released code.
        """
        size = self.config.image_size
        if self.forensic is not None:
            return seen.tokens(self.forensic, self.memory, image, size)
        shape = self._resized((image.shape[2], image.shape[3]))
        if shape != tuple(image.shape[2:]):
            image = F.interpolate(image, size=shape, mode="bilinear", antialias=True, align_corners=False)
        return F.pad((image - self.mean) / self.std, (0, size - shape[1], 0, size - shape[0]))

    def embed(self, shown: Tensor) -> Tensor:
        """(B,D,g,g): the image embedding of what `prepared` gives."""
        return self.model.vision_encoder(shown).last_hidden_state

    def decode(self, embedding: Tensor, sparse: Tensor, dense: Tensor | None = None) -> Tensor:
        """Logits (B,1,4g,4g) of one mask for the image embedding (B,D,g,g) and the prompt tokens `sparse` (B,P,D).

        `dense` (B,D,g,g) is added to SAM's embedding for "no mask".
        """
        count, _, height, width = embedding.shape
        prompt = self.model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(count, -1, height, width)
        if dense is not None:
            prompt = prompt + dense
        positions = self.model.get_image_wide_positional_embeddings().expand(count, -1, -1, -1)
        masks, _ = self.model.mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=positions,
            sparse_prompt_embeddings=sparse[:, None],
            dense_prompt_embeddings=prompt,
            multimask_output=False,
        )
        return masks[:, 0]

    def fitted(self, logits: Tensor, size: tuple[int, int], out: tuple[int, int] | None = None) -> Tensor:
        """The part of `logits` (B,1,h,w) that an image of `size` (H,W) covers, bilinear at `out` (default: `size`).

        The square is enlarged to the encoder's side first. Source: SAM, released code (`postprocess_masks`).
        """
        rows, columns = self.covered(size)
        if (rows, columns) != (1.0, 1.0):
            side = self.config.image_size
            logits = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
            logits = logits[:, :, : round(rows * side), : round(columns * side)]
        return F.interpolate(logits, size=out or size, mode="bilinear", align_corners=False)

    def points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Prompt tokens (B,P+1,D) for `points` (B,P,2) as (x, y) in [0,1] of the square; labels 1 inside, 0 outside."""
        sparse, _ = self.model.prompt_encoder(self._pixels(points)[:, None], labels[:, None], None, None)
        return sparse[:, 0]

    def boxes(self, boxes: Tensor) -> Tensor:
        """Prompt tokens (B,2,D) for `boxes` (B,4) as (x1, y1, x2, y2) in [0,1] of the square."""
        corners = self._pixels(boxes.unflatten(1, (2, 2))).flatten(1)
        sparse, _ = self.model.prompt_encoder(None, None, corners[:, None], None)
        return sparse[:, 0]

    def loss(self, batch: Batch) -> Losses:
        """Binary cross-entropy and Dice of the mask for a prompt: in half of the batches a point within the manipulated
        region, in the others its box with jitter. Terms `bce`, `dice`. ValueError without masks.

        Authentic images are asked about a point or box anywhere, and have no such region. Drawn from torch's generator.
        """
        if batch.mask is None:
            raise ValueError("SAM learns from masks: the batch has none")
        size = (batch.image.shape[2], batch.image.shape[3])
        scale = torch.tensor(self.covered(size)[::-1], device=batch.image.device)
        cells = F.adaptive_avg_pool2d(batch.mask.float(), CELLS)[:, 0]
        if bool(torch.rand((), device="cpu") < 0.5):
            point = draw_points(cells) * scale
            sparse = self.points(point[:, None], torch.ones(len(point), 1, device=point.device))
        else:
            sparse = self.boxes(draw_boxes(cells) * scale.repeat(2))
        embedding = self.embed(self.prepared(batch.image))
        logits = self.fitted(self.decode(embedding, sparse), size).float()
        terms = {"bce": bce(logits, batch.mask), "dice": dice(logits, batch.mask, scale=1.0, smooth=1.0)}
        return Losses(total=terms["bce"] + self.config.dice * terms["dice"], terms=terms)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and embeddings."""
        return seen.parameter_groups(self, weight_decay)

    def save_files(self, directory: Path) -> None:
        """`sam.json`: configuration and sizes; and what forensic backbone the tokens come from."""
        seen.keep(directory, "sam", self.config, self.model.config, self.forensic)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        scale = self.config.image_size / max(size)
        return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))

    def _pixels(self, points: Tensor) -> Tensor:
        """Places in [0,1] as SAM counts them: its prompt encoder adds half a pixel and divides by the side."""
        return points * self.config.image_size - 0.5


def bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of logits (B,1,H,W) against a mask of the same size: over pixels, then images, the mean."""
    return F.binary_cross_entropy_with_logits(logits, mask.to(logits))


def dice(logits: Tensor, mask: Tensor, scale: float = 1000.0, smooth: float = EPSILON) -> Tensor:
    """Mean over images of 1 - (2 sum(p t) / scale + smooth) / (sum(p) / scale + sum(t) / scale + smooth).

    Source: LISA, released code (scale 1000, smooth 1e-6). The scale weighs `smooth` up a thousandfold, no more: an
    empty mask costs 1 unless next to nothing is predicted.
    """
    p, t = logits.sigmoid().flatten(1), mask.to(logits).flatten(1)
    both = 2 * (p * t).sum(1) / scale + smooth
    return (1 - both / (p.sum(1) / scale + t.sum(1) / scale + smooth)).mean()


def draw_points(cells: Tensor) -> Tensor:
    """(B,2): a place (x, y) in [0,1] in each of `cells` (B,h,w), with probability proportional to their values; where
    all are 0, anywhere."""
    count, height, width = cells.shape
    weights = cells.flatten(1)
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, torch.ones_like(weights))
    chosen = torch.multinomial(weights, 1)[:, 0]
    within = torch.rand(count, 2, device=cells.device)
    y, x = chosen // width, chosen % width
    return torch.stack([(x + within[:, 0]) / width, (y + within[:, 1]) / height], dim=1)


def draw_boxes(cells: Tensor) -> Tensor:
    """(B,4): the box (x1, y1, x2, y2) in [0,1] around `cells` (B,h,w) above 0.5 (or, without any, above 0), each side
    moved by up to `JITTER` of the box; where all are 0, any box."""
    boxes = []
    for values in cells:
        inside = values > 0.5 if bool((values > 0.5).any()) else values > 0
        rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        if len(rows) == 0:
            corners = torch.rand(2, 2, device=cells.device).sort(dim=0).values.flatten()
            boxes.append(corners)
            continue
        height, width = inside.shape
        low = torch.stack([columns[0] / width, rows[0] / height])
        high = torch.stack([(columns[-1] + 1) / width, (rows[-1] + 1) / height])
        moved = torch.cat([low, high]) + (2 * torch.rand(4, device=cells.device) - 1) * JITTER * (high - low).repeat(2)
        boxes.append(moved.clamp(0, 1))
    return torch.stack(boxes)


def build(config: Config, assets: Mapping[str, Path]) -> Sam:
    """SAM for `config`.

    Assets: `checkpoint`, a local directory in the official format, whose sizes are taken; `run`, a saved directory,
    whose sizes are; `forensic`, the backbone whose tokens are seen. Without any: random.
    """
    saved = seen.architecture(assets, "sam")
    config = seen.config(Config, assets, "sam") if saved else config
    traces = seen.forensic_of(assets) if config.forensic else None
    if "checkpoint" in assets:
        model = _official(assets["checkpoint"])
        sizes = model.config.vision_config
        return Sam(replace(config, image_size=sizes.image_size, patch=sizes.patch_size), traces, model)
    return Sam(config, traces, _fresh(config, traces, saved))


def _official(directory: Path) -> Any:
    from transformers import SamModel

    return _untied(SamModel.from_pretrained(str(directory), local_files_only=True))


def _fresh(config: Config, traces: forensic.Forensic | None, saved: dict[str, Any] | None) -> Any:
    """A random model of the sizes in `config`, or of those once saved."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    vision = SamVisionConfig(
        hidden_size=config.width,
        output_channels=config.prompt,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_channels=3 if traces is None else traces.width,
        image_size=config.image_size,
        patch_size=config.patch,
        window_size=config.window,
        global_attn_indexes=list(config.global_layers),
        num_pos_feats=config.prompt // 2,
        mlp_dim=config.mlp,
        initializer_range=config.init,
    )
    prompt = SamPromptEncoderConfig(hidden_size=config.prompt, image_size=config.image_size, patch_size=config.patch)
    decoder = SamMaskDecoderConfig(
        hidden_size=config.prompt,
        num_hidden_layers=config.decoder_layers,
        num_attention_heads=config.decoder_heads,
        mlp_dim=config.decoder_mlp,
        iou_head_hidden_dim=config.prompt,
    )
    parts = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}
    sizes = SamConfig.from_dict(saved) if saved else SamConfig(**parts, initializer_range=config.init)
    model = SamModel(sizes)
    # Source: SAM, released code: standard deviation 1 (transformers: half the width, made good by loading weights)
    nn.init.normal_(model.shared_image_embedding.positional_embedding)
    return _untied(model)


def _untied(model: Any) -> Any:
    """`model` with two equal constants for the tied positional encoding."""
    values = model.shared_image_embedding.positional_embedding.detach()
    for part in (model.shared_image_embedding, model.prompt_encoder.shared_embedding):
        part.positional_embedding = nn.Parameter(values.clone(), requires_grad=False)
    return model
