"""A network of the forensic backbone's kind that no mask and no label has taught: AAP's control anchor at small scale.

It learns that patches of one image belong together and patches of different photographs do not, as networks that find
splices by self-consistency do. Its features know how an image was made, not what a forgery looks like.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge import backbones, paths
from unforge.backbones import forensic, seen
from unforge.types import Batch, Losses, Recipe

TRAINED_ON = "pretraining"
FILE = "anchor.json"

RECIPE = Recipe(
    source="unforge: what learns within 60 s on one thread",
    optimiser="adamw",
    lr=3e-3,
    min_lr=3e-5,
    batch=8,
    epochs=20,
    samples_per_epoch=200,
    warmup_epochs=1.0,
    weight_decay=0.01,
    clip=1.0,
    ema=0.99,
    augment=("dihedral",),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """ASSUMPTION(paper): all of it; AAP's anchor is CLIP, which has seen no mask either."""

    width: int = 32
    """Channels everywhere, as in the forensic backbone, whose other sizes are taken."""
    patch: int = 48
    """Side of the patches that are compared (pixels); at most half of the image's."""
    projection: int = 32
    """Channels in which patches are compared."""
    temperature: float = 0.1
    """Source: SupCon (Khosla et al. 2020), released code, has 0.07; of the same order."""
    recipe: Recipe = field(default_factory=lambda: RECIPE)


SMALL = Config()


class Consistency(nn.Module):
    """`network` is the forensic one; where that has a layer for the probability of manipulation, this has the
    projection in which patches are compared. `width`: channels of `tokens`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.memory = forensic.Memory(seen.ROOM)
        self.network = forensic.Forensic(dataclasses.replace(forensic.SMALL, width=config.width))
        self.network.head = nn.Linear(config.width, config.projection)

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H/8,W/8) features of `image` (B,3,H,W) in [0,1], of any size."""
        return self.network(image)["deep"]

    @torch.no_grad()
    def tokens(self, image: Tensor, grid: int) -> Tensor:
        """(B,grid*grid,`width`), row by row: features averaged over each cell of `image` (B,3,H,W) in [0,1].

        Without gradients and with the statistics of training (eval mode), whatever mode the network is in.
        """
        training = self.training
        self.eval()
        features = self(image)
        self.train(training)
        return F.adaptive_avg_pool2d(features, (grid, grid)).flatten(2).transpose(1, 2)

    def remembered(self, image: Tensor, grid: int) -> Tensor:
        """`tokens` of each image by itself; images that come again are not computed again."""

        def looked(one: Tensor) -> tuple[Tensor, ...]:
            return (self.tokens(one, grid),)

        # what inference mode makes could not be learnt from later
        found = looked(image) if torch.is_inference_mode_enabled() or image.is_meta else self.memory(image, looked)
        return found[0]

    def freeze(self) -> Consistency:
        """From now on nothing here requires a gradient, and `train()` leaves it in eval mode."""
        self.network.freeze()
        return self.requires_grad_(False).eval()

    def loss(self, batch: Batch) -> Losses:
        """InfoNCE of patches: for each, every other patch of its image against all patches. Terms `consistency`,
        `nearest` (share of patches whose nearest one is of the same image, not minimised).

        Neither masks nor labels are read. Each patch goes through the network alone, as attention would tell it of
        its neighbours. Pairs of different images that share a photograph are left out. ValueError for images below
        16 pixels, which have no patches.
        Source: SupCon, Eq. 2, with the image in the place of the class; the idea: Huh et al. 2018 (Fighting fake
        news), Cozzolino and Verdoliva 2020 (Noiseprint), which know the camera.
        """
        patches, owner = self.patches(batch.image)
        embedded = F.normalize(self.network(patches)["logits"].float().mean(dim=(2, 3)), dim=1)
        value, nearest = info_nce(embedded, owner, shared(batch.source), self.config.temperature)
        return Losses(total=value, terms={"consistency": value, "nearest": nearest})

    def patches(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """All patches (N,3,p,p) of a grid over each `image`, without overlap, and the image (N,) of each."""
        side = min(self.config.patch, *(size // 2 for size in image.shape[2:]))
        if side < forensic.STRIDE:
            raise ValueError(f"images of {tuple(image.shape[2:])} pixels: at least {2 * forensic.STRIDE} are needed")
        cut = image.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        owner = torch.arange(len(image), device=image.device)[:, None].expand(cut.shape[:2])
        return cut.flatten(0, 1), owner.flatten()

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and layer scales."""
        return seen.parameter_groups(self, weight_decay)


def shared(source: tuple[tuple[str, ...], ...]) -> Tensor:
    """(B,B): whether two images of a batch were made from a common photograph."""
    return torch.tensor([[bool(set(a) & set(b)) for b in source] for a in source])


def info_nce(embedded: Tensor, owner: Tensor, related: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Loss and the share of patches whose nearest one is of the same image.

    `embedded` (N,D) of length 1; `owner` (N,): the image of each; `related` (B,B): images that are no negatives of
    each other. For each patch the mean over the others j of its image of
    -log(exp(s_j) / sum_k exp(s_k)), s = cosine / temperature, k all patches but itself and those of related images.
    """
    similar = embedded @ embedded.T / temperature
    own = owner[:, None] == owner[None]
    itself = torch.eye(len(owner), dtype=torch.bool, device=owner.device)
    unusable = itself | (related.to(owner.device)[owner][:, owner] & ~own)
    similar = similar.masked_fill(unusable, -torch.inf)
    positive = own & ~itself
    logs = similar - similar.logsumexp(dim=1, keepdim=True)
    value = -logs.masked_fill(~positive, 0.0).sum(dim=1) / positive.sum(dim=1)
    nearest = positive.gather(1, similar.argmax(dim=1, keepdim=True))
    return value.mean(), nearest.float().mean()


def keep(network: Consistency, directory: Path) -> None:
    """Write what `opened` needs to make it anew from the asset `run`, beside the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    paths.write_json(directory / FILE, dataclasses.asdict(network.config))


def opened(assets: Mapping[str, Path]) -> Consistency:
    """The frozen network: the trained one of the asset `anchor`; else an untrained one, of the sizes in the asset `run`
    or the small ones (its weights come with the state dict of whatever holds it). ValueError for another backbone."""
    if "anchor" in assets:
        loaded = backbones.load(assets["anchor"])
        if not isinstance(loaded, Consistency):
            raise ValueError(f"{assets['anchor']} is no consistency backbone")
        return loaded.freeze()
    saved = assets["run"] / FILE if "run" in assets else None
    config = backbones.restore(Config, paths.read_json(saved)) if saved is not None and saved.is_file() else SMALL
    return build(config, {}).freeze()


def build(config: Config, assets: Mapping[str, Path]) -> Consistency:
    """An untrained network; it needs no assets."""
    return Consistency(config)
