"""SIDA: a language model with the tokens <CLS> and <SEG>: the class of an image, and where it was tampered with.

The answer holds both tokens for every image. The released evaluation puts the true answer, which says whether there is
anything to segment, before the model, and scores masks of truly tampered images only.
Deviation: here nothing of the truth can reach `predict`. As <CLS> comes first and attention is causal, the class is
what the released form would give; the mask is given for every image (or, `gated`, where the predicted class asks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.backbones import llava, sam, seen, segment
from unforge.methods import _grounded
from unforge.types import Batch, Losses, Prediction, Recipe

CLS, SEG = "[CLS]", "[SEG]"
QUESTION = llava.INSTRUCTIONS[1]
ANSWER = f"{CLS} {SEG}"
NAMES = ("real", "fully synthetic", "tampered")

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        # Deviation: a half cosine where the released code falls linearly.
        source="SIDA, released code (train_SIDA.py)",
        optimiser="adamw",
        lr=1e-4,
        min_lr=0.0,
        batch=2,
        accumulate=10,
        epochs=10,
        samples_per_epoch=20000,
        # ASSUMPTION(paper): as LISA's code, which it is made from, 100 steps
        warmup_epochs=0.1,
        betas=(0.9, 0.95),
        clip=1.0,
        dtype="bfloat16",
    ),
    "small": _grounded.SMALL_RECIPE,
}


@dataclass(frozen=True, kw_only=True)
class Config(_grounded.Grounded):
    train_words: bool = True
    """Whether the embeddings of words learn too. Source: released code."""
    heads: int = 8
    """Of the attention from the class to <SEG>. Source: released code."""
    linked: bool = True
    """Whether the class logits attend to <SEG>. With one <SEG> its weight is 1 whatever the class, so that what is
    added does not depend on the class."""
    classes: float = 1.0
    """Weight of the classes' cross-entropy. Source: released code, as are the next ones."""
    bce: float = 1.0
    dice: float = 1.0
    ce: float = 0.0
    """Weight of the answer's cross-entropy. Source: released code, first stage: it is not used."""
    gated: bool = False
    """Whether the mask follows the predicted class: empty where it is real, everything where it is synthetic.
    ASSUMPTION(paper): not; the released evaluation scores masks whatever class was predicted."""
    input_size: int | None = 1024
    """Images are resized to this in training, where the profile gives no crop (pixels)."""
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(Config(), language=llava.SMALL, masks=sam.SMALL, input_size=None, recipe=RECIPES["small"])

VARIANTS: dict[str, Config] = {
    "": Config(),
    "unlinked": replace(Config(), linked=False),
    "gated": replace(Config(), gated=True),
}
PARTS = _grounded.PARTS


class Sida(nn.Module):
    """LLaVA with low-rank updates, a class head at <CLS>, and SAM's decoder at <SEG>."""

    EXTRAS = ()

    def __init__(self, config: Config, talking: llava.Llava, masking: sam.Sam, cls: int, seg: int) -> None:
        super().__init__()
        self.config = config
        self.cls, self.seg = cls, seg
        self.llava = talking.requires_grad_(False)
        self.llava.add_lora(config.lora_rank, config.lora_alpha, config.lora_dropout)
        if config.train_words:
            self.llava.model.get_input_embeddings().requires_grad_(True)
        if config.ce:
            self.llava.model.lm_head.requires_grad_(True)
        self.segmenter = segment.Segmenter(masking, talking.width)
        width = talking.width
        self.cls_head = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 3))
        self.sida_fc1 = nn.Linear(3, masking.width) if config.linked else None
        self.attention = nn.MultiheadAttention(masking.width, config.heads, batch_first=True) if config.linked else None

    def states(self, shown: Tensor) -> tuple[llava.States, llava.Sequences, Tensor, Tensor]:
        """One pass with the fixed answer: all states, what was read, class logits (B,3) and <SEG>'s prompt (B,P)."""
        sequences = self.llava.sequences([QUESTION] * len(shown), [ANSWER] * len(shown))
        states = self.llava.run(shown, sequences.ids)
        logits = self.cls_head(self.llava.before(states, sequences.ids, self.cls)[0])
        prompt = self.segmenter.prompt(self.llava.before(states, sequences.ids, self.seg)[0])
        if self.sida_fc1 is not None and self.attention is not None:
            query = self.sida_fc1(logits)[:, None]
            added, _ = self.attention(query, prompt[:, None], prompt[:, None], need_weights=False)
            prompt = prompt + added[:, 0]
        return states, sequences, logits, prompt

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] to logits (B,1,h,w) of SAM's decoder."""
        first, second = segment.shown(self.llava, self.segmenter.sam, image)
        return self.segmenter(second, self.states(first)[3])

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of the class; binary cross-entropy and Dice of the masks of tampered images. Terms `classes`,
        `bce`, `dice` (0 without such an image), `ce` where it has a weight. ValueError without masks.

        Deviation: batches mix classes, where the released code's have one each.
        """
        if batch.mask is None:
            raise ValueError("SIDA learns from masks: the batch has none")
        size = (batch.image.shape[2], batch.image.shape[3])
        kinds = llava.three_classes(batch.label, batch.mask)
        first, second = segment.shown(self.llava, self.segmenter.sam, batch.image)
        states, sequences, classes, prompt = self.states(first)
        terms = {"classes": F.cross_entropy(classes.float(), kinds)}
        chosen = (kinds == llava.TAMPERED).nonzero()[:, 0]
        # without a tampered image: 0, and still a gradient for every parameter
        picked = chosen if len(chosen) else torch.zeros_like(kinds[:1])
        weight = float(len(chosen) > 0)
        logits = self.segmenter.logits(second[picked], prompt[picked], size)
        terms["bce"] = weight * sam.bce(logits, batch.mask[picked])
        terms["dice"] = weight * sam.dice(logits, batch.mask[picked], self.config.dice_scale)
        total = self.config.classes * terms["classes"] + self.config.bce * terms["bce"]
        total = total + self.config.dice * terms["dice"]
        if self.config.ce:
            terms["ce"] = self.llava.cross_entropy(states, sequences)
            total = total + self.config.ce * terms["ce"]
        return Losses(total=total, terms=terms)

    @torch.no_grad()
    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """Probabilities (B,3) of real, fully synthetic and tampered; of manipulation (B,1,H,W); and the class in words.

        The score is the probability of not being real. `image` (B,3,H,W) in [0,1], any size.
        """
        first, second = segment.shown(self.llava, self.segmenter.sam, image)
        _, _, classes, prompt = self.states(first)
        probabilities = classes.float().softmax(dim=1)
        mask = self.segmenter.logits(second, prompt, (image.shape[2], image.shape[3])).sigmoid()
        best = probabilities.argmax(dim=1)
        if self.config.gated:
            mask = mask * (best == llava.TAMPERED)[:, None, None, None]
            mask = mask + (best == llava.SYNTHETIC)[:, None, None, None].to(mask)
        return Prediction(
            mask=mask,
            score=1 - probabilities[:, llava.REAL],
            class_probs=probabilities,
            text=tuple(NAMES[i] for i in best.tolist()),
        )

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and embeddings."""
        return seen.parameter_groups(self, weight_decay)

    def save_files(self, run_dir: Path) -> None:
        """The tokenizer and the sizes of the parts."""
        segment.save(self.llava, self.segmenter.sam, run_dir)


def build(config: Config, assets: Mapping[str, Path]) -> Sida:
    """SIDA for `config`. Assets: `backbone` (LLaVA) and `sam`, directories of trained ones or official checkpoints; or
    `run`, a saved run."""
    talking, masking, tokens = segment.assemble(config.language, config.masks, assets, [CLS, SEG])
    return Sida(config, talking, masking, *tokens)
