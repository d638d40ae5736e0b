"""FakeShield: a first model says whether and where an image was tampered with, a second turns its words into a mask.

DTE-FDM: a tag for the domain of the forgery goes before the question, and a LLaVA answers. MFLM: another LLaVA reads
the image, that description and a request for the mask, and answers with <SEG>, whose last state is the prompt of SAM's
mask decoder. What the first model does not call tampered has no mask.
ASSUMPTION(paper): both are trained in one run; MFLM learns from true descriptions (an option of the released code) of
tampered images; the domain is `generated` where the whole image is, else `edited`, and unknown of authentic images.
Deviation: the domain is told from the mean of LLaVA's vision features by a linear layer, not by a network of its own;
there is no tag for faces. What DTE-FDM calls fully synthetic, a class FakeShield does not have, is masked everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.backbones import llava, sam, seen, segment
from unforge.methods import _grounded
from unforge.types import Batch, Losses, Prediction, Recipe

SEG = "[SEG]"
TAGS = ("Suspected edited image.", "Suspected generated image.")
REQUEST = llava.INSTRUCTIONS[2]
ANSWER = f"It is {SEG}."
DESCRIBER = "describer"

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        # ASSUMPTION(paper): one run of both stages; the first one's own run has 2e-4, batches of 24 and 1 epoch.
        # Deviation: a half cosine where the released code falls linearly.
        source="FakeShield, released code (MFLM/finetune_lora.sh, train_ft.py)",
        optimiser="adamw",
        lr=3e-4,
        min_lr=0.0,
        batch=24,
        accumulate=10,
        epochs=10,
        samples_per_epoch=120000,
        warmup_epochs=0.3,
        betas=(0.9, 0.95),
        clip=1.0,
        dtype="bfloat16",
    ),
    "small": _grounded.SMALL_RECIPE,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    first: llava.Config = field(
        default_factory=lambda: llava.Config(
            image_size=336, width=5120, layers=40, heads=40, mlp=13824, positions=4096, gradient_checkpointing=True
        )
    )
    """DTE-FDM. Source: released code: LLaVA-13B with CLIP-L/14-336."""
    second: llava.Config = field(default_factory=lambda: llava.Config(image_size=336, gradient_checkpointing=True))
    """MFLM. Source: released code: GLaMM, a LLaVA-7B with CLIP-L/14-336."""
    masks: sam.Config = field(default_factory=sam.Config)
    first_rank: int = 128
    """Of DTE-FDM's low-rank updates. Source: released code, as are the next ones."""
    first_alpha: float = 256.0
    second_rank: int = 8
    second_alpha: float = 16.0
    lora_dropout: float = 0.05
    train_words: bool = True
    """Whether MFLM's embeddings of words and its last layer learn too."""
    ce: float = 1.0
    """Weight of MFLM's answer; released code, as are the next two."""
    dice: float = 0.5
    bce: float = 2.0
    dice_scale: float = 1000.0
    describe: float = 1.0
    """Weight of DTE-FDM's answer. ASSUMPTION(paper): equal ones, here and for the tag."""
    tag: float = 1.0
    gated: bool = True
    """Whether only what DTE-FDM calls tampered has a mask."""
    answer_tokens: int = 512
    """Longest description that is generated."""
    input_size: int | None = 1024
    """Images are resized to this in training, where the profile gives no crop (pixels)."""
    count_size: int = 1024
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(
    Config(),
    first=llava.SMALL,
    second=llava.SMALL,
    masks=sam.SMALL,
    first_rank=8,
    first_alpha=16.0,
    answer_tokens=96,
    input_size=None,
    recipe=RECIPES["small"],
)

VARIANTS: dict[str, Config] = {"": Config(), "ungated": replace(Config(), gated=False)}
PARTS = {
    "dte_fdm": "describer.model.model.language_model",
    "mflm": "locator.model.model.language_model",
    "sam_encoder": "segmenter.sam.model.vision_encoder",
    "mask_decoder": "segmenter.sam.model.mask_decoder",
}


class FakeShield(nn.Module):
    """`describer` and `tagger` are DTE-FDM; `locator` and `segmenter` are MFLM."""

    EXTRAS = ()

    def __init__(
        self,
        config: Config,
        describer: llava.Llava,
        locator: llava.Llava,
        masking: sam.Sam,
        token: int,
        explanations: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.token = token
        self.explanations = explanations
        self.describer = describer.requires_grad_(False)
        self.describer.add_lora(config.first_rank, config.first_alpha, config.lora_dropout)
        self.tagger = nn.Linear(describer.model.config.vision_config.hidden_size, len(TAGS))
        self.locator = locator.requires_grad_(False)
        self.locator.add_lora(config.second_rank, config.second_alpha, config.lora_dropout)
        if config.train_words:
            self.locator.model.get_input_embeddings().requires_grad_(True)
            self.locator.model.lm_head.requires_grad_(True)
        self.segmenter = segment.Segmenter(masking, locator.width)

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] to logits (B,1,h,w) of SAM's decoder, both models' answers given."""
        first, second, third = self.shown(image)
        said = [llava.VERDICTS[llava.REAL]] * len(image)
        asked = self.describer.sequences([_question(0)] * len(image), said).ids
        self.describer.logits(self.describer.run(first, asked.to(image.device)).last)
        ids = self.locator.sequences([_request(0, text) for text in said], [ANSWER] * len(image)).ids.to(image.device)
        state, _ = self.locator.before(self.locator.run(second, ids), ids, self.token)
        return self.segmenter(third, self.segmenter.prompt(state))

    def shown(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `describer`, `locator` and SAM see of `image` (B,3,H,W)."""
        first, third = segment.shown(self.describer, self.segmenter.sam, image)
        shared = self.locator.config.forensic and self.locator.config.image_size == self.describer.config.image_size
        return first, first if shared else self.locator.prepared(image), third

    def tags(self, shown: Tensor) -> Tensor:
        """Logits (B,2) of `TAGS`."""
        return self.tagger(self.describer.features(shown).mean(dim=1))

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of DTE-FDM's answer and tag; of tampered images also that of MFLM's answer, and binary
        cross-entropy and Dice of the mask. Terms `describe`, `tag`, `ce`, `bce`, `dice` (the last three 0 without a
        tampered image, `tag` without a forged one).

        ValueError without masks, and for a key that the explanations do not have.
        """
        if batch.mask is None:
            raise ValueError("FakeShield learns from masks: the batch has none")
        size = (batch.image.shape[2], batch.image.shape[3])
        kinds = llava.three_classes(batch.label, batch.mask)
        first, second, third = self.shown(batch.image)
        texts = self.descriptions(batch.key, kinds, batch.mask)

        tag_logits = self.tags(first).float()
        true = torch.where(kinds == llava.REAL, llava.IGNORED, (kinds == llava.SYNTHETIC).long())
        tag = F.cross_entropy(tag_logits, true, ignore_index=llava.IGNORED, reduction="sum")
        chosen = tag_logits.argmax(dim=1).tolist()
        sequences = self.describer.sequences([_question(i) for i in chosen], texts)
        terms = {"describe": self.describer.cross_entropy(self.describer.run(first, sequences.ids), sequences)}
        terms["tag"] = tag / (true != llava.IGNORED).sum().clamp_min(1)

        rows = (kinds == llava.TAMPERED).nonzero()[:, 0]
        weight = float(len(rows) > 0)
        # without a tampered image: 0, and still a gradient for every parameter
        rows = rows if len(rows) else torch.zeros_like(kinds[:1])
        prompts = [_request(chosen[i], texts[i]) for i in rows.tolist()]
        asked = self.locator.sequences(prompts, [ANSWER] * len(rows))
        states = self.locator.run(second[rows], asked.ids)
        state, _ = self.locator.before(states, asked.ids, self.token)
        logits = self.segmenter.logits(third[rows], self.segmenter.prompt(state), size)
        terms["ce"] = weight * self.locator.cross_entropy(states, asked)
        terms["bce"] = weight * sam.bce(logits, batch.mask[rows])
        terms["dice"] = weight * sam.dice(logits, batch.mask[rows], self.config.dice_scale)
        weights = {name: float(getattr(self.config, name)) for name in terms}
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return Losses(total=total, terms=terms)

    def descriptions(self, keys: Sequence[str], kinds: Tensor, mask: Tensor) -> list[str]:
        """What DTE-FDM should say of each image: its explanation; without any, the verdict and the place."""
        if self.explanations is None:
            return [llava.answer(int(kind), one) for kind, one in zip(kinds, mask, strict=True)]
        missing = sorted(set(keys) - set(self.explanations))
        if missing:
            raise ValueError(f"no explanation of {', '.join(missing[:3])}: make them for the training sets")
        return [self.explanations[key].replace("{mask}", "").strip() for key in keys]

    @torch.no_grad()
    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """Probability of manipulation (B,1,H,W), and DTE-FDM's answers: an answer that names no class, or the class
        real, gives an empty mask.

        `image` (B,3,H,W) in [0,1], any size.
        """
        first, second, third = self.shown(image)
        size = (image.shape[2], image.shape[3])
        tags = self.tags(first).argmax(dim=1).tolist()
        masks, texts = [], []
        for i, tag in enumerate(tags):
            row = slice(i, i + 1)
            said = self.describer.generate(first[row], _question(tag), self.config.answer_tokens)
            texts.append(self.describer.text(said.ids[0]))
            kind = llava.verdict(texts[-1])
            if self.config.gated and kind != llava.TAMPERED:
                masks.append(torch.full((1, 1, *size), float(kind == llava.SYNTHETIC), device=image.device))
                continue
            ids = self.locator.sequences([_request(tag, texts[-1])], [ANSWER]).ids.to(image.device)
            state, _ = self.locator.before(self.locator.run(second[row], ids), ids, self.token)
            masks.append(self.segmenter.logits(third[row], self.segmenter.prompt(state), size).sigmoid())
        return Prediction(mask=torch.cat(masks), text=tuple(texts))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and embeddings."""
        return seen.parameter_groups(self, weight_decay)

    def save_files(self, run_dir: Path) -> None:
        """The tokenizers and the sizes of the parts; DTE-FDM's in a folder of their own."""
        segment.save(self.locator, self.segmenter.sam, run_dir)
        self.describer.save_files(run_dir / DESCRIBER)


def _question(tag: int) -> str:
    return f"{TAGS[tag]} {llava.QUESTION}"


def _request(tag: int, text: str) -> str:
    return f"{TAGS[tag]} {text} {REQUEST}"


def build(config: Config, assets: Mapping[str, Path]) -> FakeShield:
    """FakeShield for `config`.

    Assets: `backbone` and `sam`, directories of a LLaVA and a SAM, trained here or official; `describer`, another LLaVA
    for DTE-FDM (else it starts from `backbone` too); `explanations`, a Parquet file of `key` and `text` to learn from;
    or `run`, a saved run.
    """
    locator, masking, (token,) = segment.assemble(config.second, config.masks, assets, [SEG])
    if "run" in assets:
        describer, _ = segment.speaker(config.first, {"run": assets["run"] / DESCRIBER}, [])
    else:
        source = DESCRIBER if DESCRIBER in assets else "backbone"
        describer, _ = segment.speaker(config.first, assets, [], source)
    if locator.config.forensic and describer.config.forensic:
        locator.forensic = None
    return FakeShield(config, describer, locator, masking, token, _explanations(assets.get("explanations")))


def _explanations(path: Path | None) -> dict[str, str] | None:
    if path is None:
        return None
    import pyarrow.parquet as pq

    return {row["key"]: row["text"] for row in pq.read_table(path, columns=["key", "text"]).to_pylist()}
