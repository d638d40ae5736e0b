"""LISA as something to build on: a LLaVA that answers with [SEG], and SAM's decoder, which its state prompts.

The small one starts from the small LLaVA and SAM and learns to segment what is manipulated, on the same forgeries.
AAP's base "LISA-7B-v1" is of this kind; a LISA that is trained on a protocol's own images is a method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unforge import backbones
from unforge.backbones import llava, sam, seen, segment
from unforge.types import Batch, Losses, Recipe

TRAINED_ON = "pretraining"
NEEDS = ("forensic", "llava", "sam")

SEG = "[SEG]"
QUESTION = llava.INSTRUCTIONS[2]
ANSWER = f"It is {SEG}."
PROMPTS = "text_hidden_fcs.safetensors"

RECIPE = Recipe(
    source="unforge: what learns within 60 s on one thread",
    optimiser="adamw",
    lr=1e-3,
    min_lr=1e-5,
    batch=8,
    epochs=20,
    samples_per_epoch=48,
    warmup_epochs=1.0,
    weight_decay=0.01,
    clip=1.0,
    ema=0.99,
    augment=("dihedral",),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Source of the weights: LISA, released code (train_ds.py)."""

    language: llava.Config = field(default_factory=llava.Config)
    """Sizes where no backbone is given. Source: LISA-7B-v1: CLIP-L/14-224 and Vicuna-7B, as the next: SAM ViT-H."""
    masks: sam.Config = field(default_factory=sam.Config)
    ce: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    dice_scale: float = 1000.0
    recipe: Recipe = field(default_factory=lambda: RECIPE)

    def __post_init__(self) -> None:
        # as JSON gives them
        for name, kind in (("language", llava.Config), ("masks", sam.Config)):
            if isinstance(getattr(self, name), dict):
                object.__setattr__(self, name, backbones.restore(kind, getattr(self, name)))


SMALL = replace(Config(), language=llava.SMALL, masks=sam.SMALL)


class Grounded(nn.Module):
    """`llava` and `segmenter`. The vision tower, the projector and SAM's encoder stay as they are; the language model,
    the words, the layers between and SAM's decoder learn.

    Deviation: LISA learns low-rank updates of the language model, which its release has merged; here all of its
    weights learn, and the result has the same form.
    """

    def __init__(self, config: Config, talking: llava.Llava, segmenter: segment.Segmenter, token: int) -> None:
        super().__init__()
        self.config = config
        self.token = token
        self.llava = talking
        self.llava.model.model.vision_tower.requires_grad_(False)
        self.llava.model.model.multi_modal_projector.requires_grad_(False)
        self.segmenter = segmenter

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] to logits (B,1,H,W), the answer given."""
        return self._answered(image)[2]

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of the answer; binary cross-entropy and Dice of the mask, which an authentic image has empty.
        Terms `ce`, `bce`, `dice`. ValueError without masks."""
        if batch.mask is None:
            raise ValueError("LISA's pretraining learns from masks: the batch has none")
        states, sequences, logits = self._answered(batch.image)
        terms = {
            "ce": self.llava.cross_entropy(states, sequences),
            "bce": sam.bce(logits, batch.mask),
            "dice": sam.dice(logits, batch.mask, self.config.dice_scale),
        }
        total = self.config.ce * terms["ce"] + self.config.bce * terms["bce"] + self.config.dice * terms["dice"]
        return Losses(total=total, terms=terms)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and embeddings."""
        return seen.parameter_groups(self, weight_decay)

    def save_files(self, directory: Path) -> None:
        """The tokenizer and the sizes of the parts."""
        segment.save(self.llava, self.segmenter.sam, directory)

    def _answered(self, image: Tensor) -> tuple[llava.States, llava.Sequences, Tensor]:
        first, second = segment.shown(self.llava, self.segmenter.sam, image)
        sequences = self.llava.sequences([QUESTION] * len(image), [ANSWER] * len(image))
        states = self.llava.run(first, sequences.ids)
        state, _ = self.llava.before(states, sequences.ids, self.token)
        size = (image.shape[2], image.shape[3])
        return states, sequences, self.segmenter.logits(second, self.segmenter.prompt(state), size)


def build(config: Config, assets: Mapping[str, Path]) -> Grounded:
    """LISA for `config`.

    Assets: `llava` and `sam`, trained backbones or official checkpoints to start from; `run`, a saved directory, whose
    sizes are taken; or `checkpoint`, a folder with `llava` and `sam` in transformers' format and
    `text_hidden_fcs.safetensors` (docs/large_models.md). Without any: random.
    """
    if "checkpoint" in assets:
        folder = assets["checkpoint"]
        parts = {"backbone": folder / "llava", "sam": folder / "sam"}
        missing = [path.name for path in (*parts.values(), folder / PROMPTS) if not path.exists()]
        if missing:
            raise FileNotFoundError(f"{folder} has no {', '.join(missing)}: docs/large_models.md says how to make them")
        model = _built(config, parts)
        _load_prompts(model.segmenter, folder / PROMPTS)
        return model
    if "run" in assets:
        return _built(config, {"run": assets["run"]})
    given = {role: assets[name] for role, name in (("backbone", "llava"), ("sam", "sam")) if name in assets}
    return _built(config, given)


def _built(config: Config, assets: Mapping[str, Path]) -> Grounded:
    talking, segmenter, (token,) = segment.grounded(config.language, config.masks, assets, [SEG])
    return Grounded(config, talking, segmenter, token)


def _load_prompts(segmenter: segment.Segmenter, path: Path) -> None:
    """Source: LISA, released code: tensors `[model.]text_hidden_fcs.0.{0,2}.{weight,bias}`."""
    from safetensors.torch import load_file

    tensors = {name.rpartition("text_hidden_fcs.0.")[2]: value for name, value in load_file(path).items()}
    segmenter.text_hidden_fcs.load_state_dict(tensors)
