"""Inverse decoders: an encoder trained to give back the features an image was decoded from.

Starts from the tokenizer's own encoder and learns f_Z from the 8-bit image of D(f_Z), which the model generated;
decoder, codebook and (but for VAR) the convolution before the quantizer stay as they are.
Source: iar_provenance, Eq. 5; released code, `finetune.py` (its image and LPIPS terms are 0 everywhere).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unforge import paths, seeds
from unforge.provenance import augment
from unforge.provenance.contract import Trainable
from unforge.types import Losses

WEIGHTS, ENTRY = "inverse.safetensors", "inverse.json"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A batch of generated images with the tokens they were decoded from."""

    image: Tensor
    """(B,3,S,S) float in [0,1]."""
    tokens: Tensor
    """(B,N) int64, or bits (B,N,d)."""


@dataclass(frozen=True, kw_only=True)
class PairArrays:
    """A batch as loaded."""

    image: np.ndarray
    """(B,S,S,3) uint8."""
    tokens: np.ndarray

    def batch(self, device: torch.device) -> Pairs:
        image = torch.from_numpy(self.image).to(device).permute(0, 3, 1, 2).contiguous()
        return Pairs(image=image.float().div_(255), tokens=torch.from_numpy(self.tokens).to(device))


class Generated:
    """Endless random samples of generated images, for `unforge.train.loop`.

    Sample i of step t depends on (seed, t, i) only. Deviation: drawn with replacement (released code: without,
    within an epoch).
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        tokens: Sequence[np.ndarray],
        *,
        seed: int,
        steps: int,
        augmented: bool = False,
    ) -> None:
        """`images`: (S,S,3) uint8, as generated; `tokens`: their token maps; both indexed lazily. `augmented`:
        perturb them by the schedule over `steps`, while the tokens stay those of the clean image. ValueError
        if there is none, or not as many of both."""
        if len(images) != len(tokens) or not len(images):
            raise ValueError(f"{len(images)} images with {len(tokens)} token maps")
        self.images, self.tokens, self.seed, self.steps, self.augmented = images, tokens, seed, steps, augmented

    def load(self, step: int, first: int, count: int) -> PairArrays:
        """Samples first .. first + count - 1 of a step."""
        chosen = [self.sample(step, index) for index in range(first, first + count)]
        images, tokens = zip(*chosen, strict=True)
        return PairArrays(image=np.stack(images), tokens=np.stack(tokens))

    def sample(self, step: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (S,S,3) uint8 and token map of one sample."""
        rng = seeds.generator(self.seed, f"{step}/{index}", "inverse")
        place = int(rng.integers(len(self.images)))
        image = np.asarray(self.images[place])
        if self.augmented:
            image = augment.perturbed(image, augment.strength(step, self.steps), rng)
        return image, np.asarray(self.tokens[place])


class Held:
    """What selects the weights: minus the mean loss on generated images that are not trained on, unperturbed."""

    def __init__(self, images: Sequence[np.ndarray], tokens: Sequence[np.ndarray], *, batch: int = 16) -> None:
        """As for `Generated`. ValueError if there is none."""
        if len(images) != len(tokens) or not len(images):
            raise ValueError(f"{len(images)} images with {len(tokens)} token maps to validate on")
        self.images, self.tokens, self.batch = images, tokens, batch

    def __call__(self, model: Any, world: Any) -> tuple[str, float]:
        """Every process measures all of them, so all get the same value."""
        total = 0.0
        for first in range(0, len(self.images), self.batch):
            places = range(first, min(first + self.batch, len(self.images)))
            arrays = PairArrays(
                image=np.stack([self.images[place] for place in places]),
                tokens=np.stack([self.tokens[place] for place in places]),
            )
            pairs = arrays.batch(world.device)
            total += model.loss(pairs).total.item() * len(places)
        return "negative_loss", -total / len(self.images)


class InverseDecoder(nn.Module):
    """A copy of a tokenizer whose encoder side alone is trained; `encode` is the inverse decoder."""

    def __init__(self, tokenizer: Trainable) -> None:
        """`tokenizer` itself is left alone."""
        super().__init__()
        inner: Any = copy.deepcopy(tokenizer)
        self.tokenizer = inner.requires_grad_(False)
        for module in self.tokenizer.encoder_modules():
            module.requires_grad_(True)

    def encode(self, image: Tensor) -> Tensor:
        """(B,3,S,S) in [0,1] to f (B,C,h,w)."""
        features: Tensor = self.tokenizer.encode(image)
        return features

    def forward(self, image: Tensor) -> Tensor:
        return self.encode(image)

    def loss(self, batch: Pairs) -> Losses:
        """Mean squared error of the features. Source: iar_provenance, Eq. 5."""
        with torch.no_grad():
            target = self.tokenizer.lookup(batch.tokens)
        error = (self.encode(batch.image).float() - target.float()).square().mean()
        return Losses(total=error, terms={"features": error})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases and norms (all recipes have none at all)."""
        trained = [p for p in self.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def train(self, mode: bool = True) -> InverseDecoder:
        """Only what is trained leaves eval mode: a quantizer in train mode might move its codes."""
        super().train(mode)
        if mode:
            self.tokenizer.eval()
            for module in self.tokenizer.encoder_modules():
                module.train()
        return self

    def split(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tokenizer's state by name: what is trained, and what is frozen."""
        places = {id(module) for module in self.tokenizer.encoder_modules()}
        prefixes = tuple(f"{name}." for name, module in self.tokenizer.named_modules() if id(module) in places)
        trained: dict[str, Tensor] = {}
        frozen: dict[str, Tensor] = {}
        for name, value in self.tokenizer.state_dict().items():
            (trained if name.startswith(prefixes) else frozen)[name] = value
        return trained, frozen

    def fingerprint(self) -> str:
        """Hash of the frozen part, but for what only its own training needs: an inverse decoder is one of this
        decoder and these codes."""
        state = hashlib.sha256()
        unused = self.tokenizer.training_state() if hasattr(self.tokenizer, "training_state") else set()
        for name, value in sorted(self.split()[1].items(), key=lambda item: item[0]):
            if name in unused:
                continue
            state.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            state.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return state.hexdigest()


def save(inverse: InverseDecoder, folder: Path) -> None:
    """Write the trained part and the frozen part's hash into `folder`, which must exist. Equal weights, equal bytes."""
    from safetensors.torch import save_file

    trained, _ = inverse.split()
    save_file({name: value.detach().cpu().contiguous() for name, value in trained.items()}, folder / WEIGHTS)
    paths.write_json(folder / ENTRY, {"frozen": inverse.fingerprint()})


def load(tokenizer: Trainable, folder: Path) -> InverseDecoder:
    """The inverse decoder saved in `folder`, in eval mode. ValueError if it is another tokenizer's."""
    from safetensors.torch import load_file

    inverse = InverseDecoder(tokenizer)
    if paths.read_json(folder / ENTRY)["frozen"] != inverse.fingerprint():
        raise ValueError(f"{folder}: an inverse decoder of another decoder or codebook than the tokenizer's")
    trained, _ = inverse.split()
    saved = load_file(folder / WEIGHTS)
    if saved.keys() != trained.keys():
        raise ValueError(f"{folder / WEIGHTS}: has not the weights {sorted(saved.keys() ^ trained.keys())[:5]}")
    inverse.tokenizer.load_state_dict(saved, strict=False)
    return inverse.eval().requires_grad_(False)
