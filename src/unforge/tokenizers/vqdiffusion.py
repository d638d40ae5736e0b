"""VQ-Diffusion's image codec for ImageNet: Taming's VQGAN, of whose 16,384 codes the generator uses 974.

Keys of `vqgan_imagenet_f16_16384.pth` as in `taming`, under `state_dict`; `taming_vqvae_974.pt` is the mapping, an
integer tensor (16384,) of each code's token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unforge.tokenizers import taming
from unforge.tokenizers.base import SCHEDULE, InverseRecipe
from unforge.tokenizers.official import Official
from unforge.tokenizers.quantizers import Remapped


@dataclass(frozen=True, kw_only=True)
class Config(taming.Config):
    """Source: VQ-Diffusion, released configuration `imagenet`.

    ASSUMPTION(paper): the model is the ImageNet one; the paper does not say which, and the released code of
    iar_provenance does not have it.
    """

    used: int = 974
    """Codes that the generator uses."""


SMALL = replace(
    Config(), image_size=32, width=16, multipliers=(1, 2, 3), blocks=1, groups=8, latent=48, codes=512, channels=32,
    used=256, unquantised_steps=200,
)  # fmt: skip

MADE_OF = "taming"
"""Small ones take a trained tokenizer of this family and use fewer of its codes, as the authors did."""

# ASSUMPTION(paper): no inverse decoder's recipe is given for VQ-Diffusion; this is taming's, whose codec it has.
RECIPE = InverseRecipe(
    source="released configuration of iar_provenance, taming",
    epochs=50,
    batch=8,
    lr=5e-4,
    augmented=SCHEDULE,
)


class VQDiffusion(taming.Taming):
    """Taming's tokenizer with remapped tokens. A code that is not used becomes a used one in `quantize`."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.quantizer = Remapped(config.codes, config.channels, used=config.used)

    @torch.no_grad()
    def settle(self, images: Tensor) -> None:
        """Use the codes that are most frequent on `images`."""
        super().settle(images)
        indices = torch.cat([self.quantizer.search(self.encode(part)).flatten() for part in images.split(64)])
        self.quantizer.keep(torch.bincount(indices, minlength=len(self.quantizer.codebook)))


def remapped(tokenizer: taming.Taming, config: Config, images: Tensor) -> VQDiffusion:
    """VQ-Diffusion's codec made of a trained Taming tokenizer, as its authors did: the same weights, the codes most
    frequent on `images`. ValueError when the configurations differ."""
    result = VQDiffusion(config)
    given = {key: value for key, value in tokenizer.state_dict().items() if key in result.state_dict()}
    if any(value.shape != result.state_dict()[key].shape for key, value in given.items()):
        raise ValueError(f"{tokenizer.config} is not the codec of {config}")
    result.load_state_dict(given, strict=False)
    result.to(images.device).train(tokenizer.training)
    result.trained()
    result.settle(images)
    return result


def load_extras(tokenizer: VQDiffusion, extras: Mapping[str, Any]) -> None:
    """The released mapping, under `mapping`."""
    tokenizer.quantizer.mapped(extras["mapping"])


OFFICIAL = Official(
    file="vqgan_imagenet_f16_16384.pth",
    release="VQ-Diffusion, MIT",
    entry="state_dict",
    name=taming.name,
    ignored=(r"loss\..*",),
    extras={"mapping": "taming_vqvae_974.pt"},
)


def build(config: Config) -> VQDiffusion:
    """An untrained tokenizer."""
    return VQDiffusion(config)
