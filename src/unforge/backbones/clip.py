"""CLIP's vision tower through transformers' `CLIPVisionModel`: patches, the class token, where that looks, and the
image embedding of a released CLIP.

At small scale the same class is four layers, and its patch embedding (a 1x1 convolution there) reads frozen tokens of
the forensic backbone instead of pixels. The small one is pretrained to tell, from the class token, whether what it sees
is real, fully synthetic or tampered: so that the class token means something before a method builds on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.backbones import forensic, llava, seen
from unforge.types import Batch, Losses, Recipe

TRAINED_ON = "pretraining"
NEEDS = ("forensic",)

RECIPE = Recipe(
    source="unforge: what learns within 15 s on one thread",
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
    """Sizes. Source: the defaults are CLIP ViT-L/14 at 224 pixels."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp: int = 4096
    image_size: int = 224
    """Side of what the tower sees: pixels, or cells of forensic tokens."""
    patch: int = 14
    projection: int | None = None
    """Length of the image embedding (ViT-L/14: 768); None: the class token is not projected."""
    init: float = 1.0
    """Factor on the standard deviations of CLIP's initial weights."""
    forensic: bool = False
    """Whether the tower reads frozen tokens of the forensic backbone instead of pixels."""
    recipe: Recipe = field(default_factory=lambda: RECIPE)


SMALL = Config(width=64, layers=4, heads=4, mlp=128, image_size=8, patch=1, forensic=True)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the tower says of images. N patches, row by row."""

    token: Tensor
    """(B,C): the class token behind the last layer and the last norm (transformers' `pooler_output`)."""
    patches: Tensor
    """(B,N,C): the patches behind the last layer. ASSUMPTION(paper): QTFP's pass the last norm, as the class token does
    in CLIP, so that both are of one scale."""
    attention: Tensor | None
    """(B,N): of the class token in the last layer. ASSUMPTION(paper): the mean over heads, then renormalised without
    the class token itself. Nothing can be learnt through it: it is detached."""


class Clip(nn.Module):
    """`model` is transformers'; its state dict has the official names behind the prefix `model.`."""

    def __init__(self, config: Config, traces: forensic.Forensic | None, model: Any) -> None:
        super().__init__()
        self.config = config
        length = config.projection
        self.projection = None if length is None else nn.Linear(model.config.hidden_size, length, bias=False)
        self.forensic = traces.freeze() if traces is not None else None
        self.memory = forensic.Memory(seen.ROOM)
        self.model = model
        self.classes = nn.Linear(self.width, 3) if traces is not None else None
        """Of the small pretraining only."""
        self.register_buffer("mean", torch.tensor(llava.MEAN, device="cpu").view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(llava.STD, device="cpu").view(1, 3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """Channels of tokens."""
        return int(self.model.config.hidden_size)

    @property
    def side(self) -> int:
        """Patches along each side."""
        return self.config.image_size // self.config.patch

    def prepared(self, image: Tensor) -> Tensor:
        """What the tower sees of `image` (B,3,H,W) in [0,1], any size.

        Forensic tokens (B,C,g,g) of the whole image; or the whole image brought to (S,S) pixels and normalised.
        Source: DeepfakeBench: bicubic (OpenCV's, which does not smooth), proportions are not kept. Deviation: CLIP's
        image processor cuts out the centre.
        """
        size = self.config.image_size
        if self.forensic is not None:
            return seen.tokens(self.forensic, self.memory, image, size)
        if image.shape[2:] != (size, size):
            image = F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
        return (image - self.mean) / self.std

    def look(self, shown: Tensor, attention: bool = True) -> Seen:
        """One pass over what `prepared` gives; `attention`: whether to say where the class token looks.

        Only the class token's row is computed, from the last layer's own queries and keys: no layer has to give all of
        its attention, as transformers' `output_attentions` would.
        """
        last, kept = self.model.encoder.layers[-1].self_attn, {}

        def keep(name: str) -> Any:
            return getattr(last, name).register_forward_hook(lambda _, __, out: kept.update({name: out.detach()}))

        hooks = [keep(name) for name in ("q_proj", "k_proj")] if attention else []
        try:
            out = self.model(shown)
        finally:
            for hook in hooks:
                hook.remove()
        patches = self.model.post_layernorm(out.last_hidden_state[:, 1:])
        found = _class_attention(kept["q_proj"], kept["k_proj"], last.num_heads) if attention else None
        return Seen(token=out.pooler_output, patches=patches, attention=found)

    def embedding(self, shown: Tensor) -> Tensor:
        """(B,C): the class token, projected where there is a projection (transformers' `image_embeds`), of any norm."""
        token = self.look(shown, attention=False).token
        return token if self.projection is None else self.projection(token)

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of three classes, told from the class token. Terms: `ce`, `right` (share of right answers, not
        minimised). ValueError without masks.

        A crop of a manipulated image in which nothing is manipulated is real.
        """
        if batch.mask is None or self.classes is None:
            raise ValueError("CLIP's small pretraining learns from masks, on forensic tokens: one of both is missing")
        kinds = llava.three_classes(batch.mask.flatten(1).amax(1).round().long(), batch.mask)
        logits = self.classes(self.look(self.prepared(batch.image), attention=False).token).float()
        loss = F.cross_entropy(logits, kinds)
        return Losses(total=loss, terms={"ce": loss, "right": (logits.argmax(1) == kinds).float().mean()})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and embeddings."""
        return seen.parameter_groups(self, weight_decay)

    def save_files(self, directory: Path) -> None:
        """`clip.json`: configuration and sizes; and what forensic backbone the tokens come from."""
        seen.keep(directory, "clip", self.config, self.model.config, self.forensic)


@torch.no_grad()
def _class_attention(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """(B,N) from (B,1+N,C) of one layer."""
    query = queries[:, :1].float().unflatten(2, (heads, -1)).transpose(1, 2)
    key = keys.float().unflatten(2, (heads, -1)).transpose(1, 2)
    weights = (query @ key.transpose(2, 3) * key.shape[-1] ** -0.5).softmax(-1)
    found = weights.mean(1)[:, 0, 1:]
    return found / found.sum(1, keepdim=True)


def build(config: Config, assets: Mapping[str, Path]) -> Clip:
    """The tower for `config`.

    Assets: `checkpoint`, a local folder in the official format (a whole CLIP or its vision tower, with the projection
    if it is there), whose sizes are taken; `run`, a saved directory, whose sizes are; `forensic`, the backbone whose
    tokens are seen. Without any: random. ValueError when the folder lacks some of the tower's weights.
    """
    saved = seen.architecture(assets, "clip")
    config = seen.config(Config, assets, "clip") if saved else config
    traces = seen.forensic_of(assets) if config.forensic else None
    if "checkpoint" in assets:
        model, projection = _official(assets["checkpoint"])
        sizes = model.config
        config = replace(
            config, width=sizes.hidden_size, layers=sizes.num_hidden_layers, heads=sizes.num_attention_heads,
            mlp=sizes.intermediate_size, image_size=sizes.image_size, patch=sizes.patch_size,
            projection=None if projection is None else len(projection),
        )  # fmt: skip
        tower = Clip(config, traces, model)
        if tower.projection is not None:
            tower.projection.load_state_dict({"weight": projection})
        return tower
    return Clip(config, traces, _fresh(config, traces, saved))


def _official(directory: Path) -> tuple[Any, Tensor | None]:
    """The vision tower of a folder, and the weight of its projection if that is there."""
    from transformers import CLIPVisionModelWithProjection

    found: Any = CLIPVisionModelWithProjection.from_pretrained(
        str(directory), local_files_only=True, output_loading_info=True
    )
    whole, report = found
    projection = "visual_projection.weight"
    missing = sorted(set(report["missing_keys"]) - {projection})
    if missing:
        raise ValueError(f"{directory} lacks weights of CLIP's vision tower: {missing[:3]} ...")
    model = whole.vision_model
    # the folder's name is no part of what is learnt
    model.config.name_or_path = ""
    return model, None if projection in report["missing_keys"] else whole.visual_projection.weight.detach()


def _fresh(config: Config, traces: forensic.Forensic | None, saved: dict[str, Any] | None) -> Any:
    """A random tower of the sizes in `config`, or of those once saved."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if saved:
        return CLIPVisionModel(CLIPVisionConfig.from_dict(saved))
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config.width,
            intermediate_size=config.mlp,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_channels=3 if traces is None else traces.width,
            image_size=config.image_size,
            patch_size=config.patch,
            initializer_factor=config.init,
        )
    )
