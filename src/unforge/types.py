"""The contracts every part of unforge shares. Imports no torch: `Tensor` is only a name here.

Shape legend: B batch, H height, W width (pixels), C channels, K classes.
Images are RGB. Masks are 1 where the image was manipulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["authentic", "splice", "copy_move", "removal", "regenerated", "history", "generated", "unknown"]
Status = Literal["ok", "flagged", "rejected"]


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What is read off a decoded image and its mask."""

    width: int
    height: int
    phash: int
    """64-bit perceptual hash (ImageHash `phash`), as a signed integer."""
    mask_fraction: float
    """Manipulated share of the image, [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image on its way into a shard."""

    key: str
    """Unique within its set; `[A-Za-z0-9_-]+` (no dot: webdataset splits names at the first dot)."""
    image: bytes
    """The original file, byte for byte: JPEG traces are evidence."""
    extension: str
    """`jpg`, `png`, `tif`, `bmp` or `webp`: the format of `image`, by content and not by file name."""
    mask: bytes | None
    """PNG, mode L, 0 or 255, of the same size as the decoded image; None for one that is authentic, or generated
    as a whole."""
    label: int
    """0 authentic, 1 manipulated or generated."""
    kind: Kind
    source: tuple[str, ...]
    """Ids of the photographs the image was made from, the background first: splits and intervals go by these."""
    unit: str
    """What is scored as one: the video, or the image's own key."""
    split: str
    """`pretrain`, `train`, `val` or `test`."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able: what was done to make it (stand-ins), flags (real data), `orientation`."""
    pixels: Pixels | None = None
    """None: whoever writes the sample decodes the image to find out."""
    origin: str | None = None
    """Name of the model that generated the whole image; None for a photograph, forged or not."""
    tokens: bytes | None = None
    """npy file: the tokens a generated image was decoded from, where they are known."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One image file of a real dataset, with the mask its mask rule gives it. Nothing is decoded yet."""

    key: str
    image: Path
    mask: Path | None
    """None for an authentic image, or when no mask was found (then `reason` says so)."""
    label: int
    kind: Kind
    source: tuple[str, ...]
    split: str = "test"
    status: Status = "ok"
    reason: str = ""
    """Why the row is flagged or rejected; empty when `ok`."""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a dataset is, for people and for `unforge data`."""

    name: str
    images: Mapping[str, int]
    """Published counts by kind, `authentic` included; what `data check` compares with."""
    licence: str
    redistribute: bool
    """False keeps images, shards and overlays out of everything published."""
    source: str
    """Paper and where the set is to be had."""
    layout: str
    """The official directory layout, in words a user can compare with what lies on disk."""
    defects: tuple[str, ...] = ()
    """Known defects and what unforge does about each."""


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """Recipe for a set of the same kind made from photographs that come with the dependencies.

    Every image of a stand-in is `size` x `size` pixels (the profile's scale value), cropped from a
    photograph of the pool's `split`.
    """

    kinds: Mapping[str, float]
    """Share of each forgery (module of `unforge.forgeries`, or `authentic`); sums to 1."""
    split: Literal["train", "test"]
    """Train stand-ins hold the pool's `train` and `val` photographs, each image marked with its split."""
    extension: Literal["jpg", "png", "tif"] = "jpg"
    quality: tuple[int, int] = (88, 98)
    """Range of the final JPEG quality (0-100), when `extension` is jpg."""
    feather: tuple[float, float] = (0.0, 2.0)
    """Range of the boundary softening (Gaussian sigma, pixels)."""
    area: tuple[float, float] = (0.03, 0.25)
    """Range of the manipulated share of the image."""
    noise: tuple[float, float] = (0.0, 0.0)
    """Extra post-processing noise on the whole image (sigma, 0-255)."""
    resample: tuple[float, float] = (1.0, 1.0)
    """Resampling factor of the whole forged image before it is saved."""
    donors: Literal["blob", "polygon"] = "blob"
    """Shape of spliced regions."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Recipe for a pool of views of photographs, nothing forged: stands in for photographs off the net.

    A view is a square of a photograph (which is first reduced to at most 1,024 px), anywhere in it, its side
    log-uniform from the stored size up to the photograph's short side, averaged down to the stored size.
    """

    splits: Mapping[str, str]
    """Split of the pool's photographs -> split of their views; photographs of other splits are left out."""
    extension: Literal["jpg", "png"] = "jpg"
    quality: tuple[int, int] = (88, 98)
    """Range of the JPEG quality (0-100), when `extension` is jpg."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a method learns from."""

    image: Tensor
    """(B,3,H,W) float, [0,1]."""
    mask: Tensor | None
    """(B,1,H,W) float, 0 or 1."""
    label: Tensor
    """(B,) int64."""
    key: tuple[str, ...]
    unit: tuple[str, ...]
    source: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Named scalar loss terms; `total` is what is minimised."""

    total: Tensor
    terms: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a method says of images it was shown without labels."""

    mask: Tensor | None = None
    """(B,1,H,W) probability of manipulation, at the size the method likes: the evaluator goes back
    to the original size."""
    score: Tensor | None = None
    """(B,) image-level probability."""
    class_probs: Tensor | None = None
    """(B,K)."""
    tokens: Tensor | None = None
    text: tuple[str, ...] | None = None
    signals: Mapping[str, Tensor] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Attention maps, hidden states, heat maps: whatever the method declares."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a method is optimised. Scale (steps, batch, crop) comes from the profile instead where a
    profile gives it; these are the values of the source named in `source`."""

    source: str
    optimiser: Literal["adam", "adamw"]
    lr: float
    min_lr: float
    batch: int
    epochs: int
    samples_per_epoch: int
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    """Not applied to biases, norms and layer scales (`parameter_groups` decides)."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    """Gradient norm."""
    ema: float | None = None
    accumulate: int = 1
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast type; float16 uses a gradient scaler."""
    augment: tuple[str, ...] = ()
    """Names of `unforge.train.augment` operations, in order."""


class Method(Protocol):
    """What `build(config, assets)` of a module in `unforge.methods` returns: a torch Module with these."""

    EXTRAS: tuple[str, ...]
    """Names of the extras `predict(..., extras=True)` gives."""

    def loss(self, batch: Batch) -> Losses: ...

    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """`image` (B,3,H,W) in [0,1] at its original size. Labels cannot reach it."""
        ...

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for a torch optimiser, each with its `weight_decay`."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, Any]]: ...
