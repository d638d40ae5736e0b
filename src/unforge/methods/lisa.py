"""LISA: a multi-modal language model answers with <SEG>, whose last state is the prompt of SAM's mask decoder.

In TamperTok's tables it is the row without any of that paper's components (Sec. 4.3, Table 2). The question asks for
the manipulated region; the answer is the same for every image, and an authentic one's mask is empty.
ASSUMPTION(paper): question and answer, and that authentic images are trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unforge.backbones import llava, sam, seen, segment
from unforge.methods import _grounded
from unforge.types import Batch, Losses, Prediction, Recipe

SEG = "[SEG]"
QUESTION = llava.INSTRUCTIONS[2]
ANSWER = f"It is {SEG}."

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        # Deviation: a half cosine where the released code falls linearly.
        source="LISA, Sec. 4.1, and released code (train_ds.py)",
        optimiser="adamw",
        lr=3e-4,
        min_lr=0.0,
        batch=2,
        accumulate=10,
        epochs=10,
        # 500 steps of 2 x 10 on 8 GPUs
        samples_per_epoch=80000,
        warmup_epochs=0.2,
        betas=(0.9, 0.95),
        clip=1.0,
        dtype="bfloat16",
    ),
    "small": _grounded.SMALL_RECIPE,
}


@dataclass(frozen=True, kw_only=True)
class Config(_grounded.Grounded):
    train_words: bool = True
    """Whether the embeddings of words and the last layer learn too. Source: released code."""
    ce: float = 1.0
    """Weight of the answer's cross-entropy. Source: released code, as are the next two."""
    dice: float = 0.5
    bce: float = 2.0
    answer_tokens: int = 16
    """Longest answer that is generated."""
    input_size: int | None = 1024
    """Images are resized to this in training, where the profile gives no crop (pixels).
    ASSUMPTION(paper): TamperTok's protocol; LISA trains on one image at a time, each of its own size."""
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(
    Config(),
    language=llava.SMALL,
    masks=sam.SMALL,
    answer_tokens=8,
    input_size=None,
    recipe=RECIPES["small"],
)

VARIANTS: dict[str, Config] = {
    "": Config(),
    # no gradient reaches the language model: what SAM's decoder learns by itself
    "frozen": replace(Config(), lora_rank=0, train_words=False),
}
PARTS = _grounded.PARTS


class Lisa(nn.Module):
    """LLaVA with low-rank updates, and SAM's decoder behind it."""

    EXTRAS = ()

    def __init__(self, config: Config, talking: llava.Llava, masking: sam.Sam, token: int) -> None:
        super().__init__()
        self.config = config
        self.token = token
        self.llava = talking.requires_grad_(False)
        self.llava.add_lora(config.lora_rank, config.lora_alpha, config.lora_dropout)
        if config.train_words:
            self.llava.model.get_input_embeddings().requires_grad_(True)
            self.llava.model.lm_head.requires_grad_(True)
        self.segmenter = segment.Segmenter(masking, talking.width)

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] to logits (B,1,h,w) of SAM's decoder, the answer given."""
        first, second = segment.shown(self.llava, self.segmenter.sam, image)
        ids = self.llava.sequences([QUESTION] * len(image), [ANSWER] * len(image)).ids.to(image.device)
        state, _ = self.llava.before(self.llava.run(first, ids), ids, self.token)
        return self.segmenter(second, self.segmenter.prompt(state))

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of the answer, binary cross-entropy and Dice of the mask. Terms `ce`, `bce`, `dice`.
        ValueError without masks."""
        if batch.mask is None:
            raise ValueError("LISA learns from masks: the batch has none")
        size = (batch.image.shape[2], batch.image.shape[3])
        first, second = segment.shown(self.llava, self.segmenter.sam, batch.image)
        sequences = self.llava.sequences([QUESTION] * len(first), [ANSWER] * len(first))
        states = self.llava.run(first, sequences.ids)
        state, _ = self.llava.before(states, sequences.ids, self.token)
        logits = self.segmenter.logits(second, self.segmenter.prompt(state), size)
        terms = {
            "ce": self.llava.cross_entropy(states, sequences),
            "bce": sam.bce(logits, batch.mask),
            "dice": sam.dice(logits, batch.mask, self.config.dice_scale),
        }
        total = self.config.ce * terms["ce"] + self.config.bce * terms["bce"] + self.config.dice * terms["dice"]
        return Losses(total=total, terms=terms)

    @torch.no_grad()
    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """Probability of manipulation (B,1,H,W) and the answers, generated; one without <SEG> has an empty mask.

        `image` (B,3,H,W) in [0,1], any size.
        """
        first, second = segment.shown(self.llava, self.segmenter.sam, image)
        answer = self.llava.generate(first, QUESTION, self.config.answer_tokens)
        found = answer.ids == self.token
        place = found.int().argmax(dim=1)
        state = answer.states[torch.arange(len(image), device=image.device), place]
        logits = self.segmenter.logits(second, self.segmenter.prompt(state), (image.shape[2], image.shape[3]))
        mask = logits.sigmoid() * found.any(dim=1)[:, None, None, None]
        return Prediction(mask=mask, text=tuple(self.llava.text(row) for row in answer.ids))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and embeddings."""
        return seen.parameter_groups(self, weight_decay)

    def save_files(self, run_dir: Path) -> None:
        """The tokenizer and the sizes of the parts."""
        segment.save(self.llava, self.segmenter.sam, run_dir)


def build(config: Config, assets: Mapping[str, Path]) -> Lisa:
    """LISA for `config`. Assets: `backbone` (LLaVA) and `sam`, directories of trained ones or official checkpoints; or
    `run`, a saved run."""
    talking, masking, tokens = segment.assemble(config.language, config.masks, assets, [SEG])
    return Lisa(config, talking, masking, *tokens)
