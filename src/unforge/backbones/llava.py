"""LLaVA: a CLIP vision tower, a projector and a Llama, through transformers' `LlavaForConditionalGeneration`.

At small scale the same classes are a few layers each, and the vision tower's patch embedding (a 1x1 convolution there)
reads frozen tokens of the forensic backbone instead of pixels. The small one is pretrained to say, in words, whether
an image is manipulated and where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge import explanations
from unforge.backbones import forensic, seen, words
from unforge.types import Batch, Losses, Recipe

TRAINED_ON = "pretraining"
NEEDS = ("forensic",)

IMAGE = "<image>"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
IGNORED = -100
"""Label of positions that are not learnt."""

REAL, SYNTHETIC, TAMPERED = 0, 1, 2
"""Classes of images, in the order of `class_probs`."""
QUESTION = "Is this image manipulated, and where?"
INSTRUCTIONS = (
    QUESTION,
    "Is this image real, fully synthetic or tampered?",
    "Please segment the manipulated region in this image.",
)
"""What a small model knows the words of, as prompts."""
VERDICTS = ("The image is real.", "The image is fully synthetic.", "The image is tampered at")
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))
"""Cells of a 3x3 grid over the image, row by row."""
FURTHER = ("It is . , Sure", "The image may be edited or generated. Suspected", "[ ] : ;")
"""Words beyond those, for methods' answers."""
SHARE = 0.25
"""A place is named when at least this share of its cell is manipulated, or when no other has more."""

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
    """Sizes. Source: the defaults are CLIP-L/14-224 and Vicuna-7B, on which LISA-7B and SIDA-7B are built."""

    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    vision_mlp: int = 4096
    image_size: int = 224
    """Side of what the vision tower sees: pixels, or cells of forensic tokens."""
    patch: int = 14
    feature_layer: int = -2
    """Which of the vision tower's hidden states are the image's features; its class token is dropped."""
    forensic: bool = False
    """Whether the vision tower reads frozen tokens of the forensic backbone instead of pixels."""
    width: int = 4096
    layers: int = 32
    heads: int = 32
    mlp: int = 11008
    vocabulary: int = 32000
    """Rows of the embedding, at least; the tokenizer may need more."""
    positions: int = 2048
    init: float = 0.02
    """Standard deviation of the language model's initial weights."""
    template: str = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: <image>\n{prompt} ASSISTANT:"
    )
    """Source: LLaVA's conversation `v1`. Deviation: without <im_start> and <im_end> around the image, which
    transformers' LLaVA does not have; its projector has two layers where LLaVA-v1 had one."""
    gradient_checkpointing: bool = False
    recipe: Recipe = field(default_factory=lambda: RECIPE)

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return (self.image_size // self.patch) ** 2


SMALL = Config(
    vision_width=64,
    vision_layers=2,
    vision_heads=4,
    vision_mlp=128,
    image_size=16,
    patch=1,
    # two layers are too few to leave one out
    feature_layer=-1,
    forensic=True,
    width=96,
    layers=2,
    heads=4,
    mlp=192,
    vocabulary=0,
    positions=512,
    init=0.1,
    template="<image>{prompt}",
)


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Prompts, with answers or without, as the language model reads them; all of one length."""

    ids: Tensor
    """(B,T) int64, padded at the right. Causal attention: padding changes no state before it."""
    labels: Tensor
    """(B,T) int64: the answer's own ids and the end, `IGNORED` elsewhere."""


@dataclass(frozen=True, kw_only=True)
class States:
    """What came out of one pass. T positions, N image tokens."""

    last: Tensor
    """(B,T,D) after the last layer and its norm."""
    vision: Tensor
    """(B,N,C) features of the vision tower, before the projector."""
    layers: tuple[Tensor, ...] = ()
    """Each (B,T,D): the embeddings, then the output of every layer; empty unless asked for."""
    image: slice
    """Positions of the image tokens."""

    def at_image(self, layer: int) -> Tensor:
        """(B,N,D): states of `layer` (0: the embeddings) at the image tokens, row by row."""
        return self.layers[layer][:, self.image]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model generated, greedily."""

    ids: Tensor
    """(B,T) int64; after the end, padding."""
    states: Tensor
    """(B,T,D): the last state that produced each of `ids`."""


class Llava(nn.Module):
    """`model` is transformers'; its state dict has the official names behind the prefix `model.`."""

    def __init__(self, config: Config, tokenizer: Any, traces: forensic.Forensic | None, model: Any) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.forensic = traces.freeze() if traces is not None else None
        self.memory = forensic.Memory(seen.ROOM)
        self.model = model
        if len(tokenizer) > self.model.get_input_embeddings().num_embeddings:
            self.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        if config.gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        self.register_buffer("mean", torch.tensor(MEAN, device="cpu").view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD, device="cpu").view(1, 3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """Channels of the language model's states."""
        return int(self.model.config.text_config.hidden_size)

    def prepared(self, image: Tensor) -> Tensor:
        """What the vision tower sees of `image` (B,3,H,W) in [0,1], any size.

        Forensic tokens (B,C,g,g) of the whole image; or pixels (B,3,S,S): the short side brought to S (bicubic), the
        centre cut out, normalised. Source: CLIP's image processor, which LISA and SIDA use.
        """
        size = self.config.image_size
        if self.forensic is not None:
            return seen.tokens(self.forensic, self.memory, image, size)
        height, width = image.shape[2:]
        scale = size / min(height, width)
        shape = (max(size, round(height * scale)), max(size, round(width * scale)))
        if shape != (height, width):
            image = F.interpolate(image, size=shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        return (image[:, :, top : top + size, left : left + size] - self.mean) / self.std

    def features(self, shown: Tensor) -> Tensor:
        """(B,N,C) of the vision tower, row by row, for what `prepared` gives."""
        out = self.model.model.vision_tower(shown, output_hidden_states=True)
        return out.hidden_states[self.config.feature_layer][:, 1:]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no start and no end."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def sequences(self, prompts: Sequence[str], answers: Sequence[str] | None = None) -> Sequences:
        """Prompts in the template, each with its answer and the end behind it."""
        before, after = self.config.template.split(IMAGE)
        image = [self.model.config.image_token_id] * self.config.tokens
        rows, starts = [], []
        for place, prompt in enumerate(prompts):
            row = [self.tokenizer.bos_token_id, *self.encode(before), *image, *self.encode(after.format(prompt=prompt))]
            starts.append(len(row))
            if answers is not None:
                row += [*self.encode(" " + answers[place]), self.tokenizer.eos_token_id]
            rows.append(row)
        length = max(map(len, rows))
        device = self.model.get_input_embeddings().weight.device
        ids = torch.full((len(rows), length), self._pad, dtype=torch.int64, device="cpu")
        labels = torch.full_like(ids, IGNORED)
        for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
            ids[place, : len(row)] = torch.tensor(row, device="cpu")
            labels[place, start : len(row)] = ids[place, start : len(row)]
        return Sequences(ids=ids.to(device), labels=labels.to(device))

    def embedded(self, ids: Tensor, vision: Tensor) -> Tensor:
        """(B,T,D): embeddings of `ids` with the projected image features at the image tokens."""
        embeds = self.model.get_input_embeddings()(ids)
        projected = self.model.model.multi_modal_projector(vision)
        image = self._image()
        return torch.cat([embeds[:, : image.start], projected.to(embeds), embeds[:, image.stop :]], dim=1)

    def run(self, shown: Tensor, ids: Tensor, layers: bool = False) -> States:
        """One pass over `ids` (B,T) with the image `shown` (as `prepared` gives it)."""
        vision = self.features(shown)
        inputs = self.embedded(ids, vision)
        # meta tensors (counting) have no values from which transformers could tell that no mask is needed
        mask = torch.ones(1, 1, *2 * ids.shape[1:], dtype=torch.bool, device="meta") if inputs.is_meta else None
        out = self.model.model.language_model(
            inputs_embeds=inputs, attention_mask=mask, output_hidden_states=layers, use_cache=False
        )
        kept = tuple(out.hidden_states) if layers else ()
        return States(last=out.last_hidden_state, vision=vision, layers=kept, image=self._image())

    def logits(self, states: Tensor) -> Tensor:
        """(...,D) last states to (...,V)."""
        return self.model.lm_head(states)

    def cross_entropy(self, states: States, sequences: Sequences) -> Tensor:
        """Mean over the answers' tokens of minus the logarithm of their probability, each from the state before it."""
        targets = sequences.labels[:, 1:]
        learnt = targets != IGNORED
        return F.cross_entropy(self.logits(states.last[:, :-1][learnt]).float(), targets[learnt])

    def before(self, states: States, ids: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """The last state (B,D) just before the first `token` of each row, and whether there is one, (B,).

        Source: LISA, released code: the mask of [SEG] tokens is shifted by one, so the state is the one that
        predicts the token. Rows without it give the state of their last position.
        """
        found = ids[:, 1:] == token
        present = found.any(dim=1)
        place = torch.where(present, found.int().argmax(dim=1), ids.shape[1] - 1)
        return states.last[torch.arange(len(ids), device=ids.device), place], present

    @torch.no_grad()
    def generate(self, shown: Tensor, prompt: str, tokens: int) -> Answer:
        """The most probable next token, up to `tokens` times or to the end, with a key-value cache."""
        ids = self.sequences([prompt] * len(shown)).ids
        inputs = self.embedded(ids, self.features(shown))
        cache, chosen, states = None, [], []
        done = torch.zeros(len(shown), dtype=torch.bool, device=ids.device)
        for _ in range(tokens):
            out = self.model.model.language_model(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            state = out.last_hidden_state[:, -1]
            token = self.logits(state).argmax(dim=-1)
            token = torch.where(done, self._pad, token)
            chosen.append(token)
            states.append(state)
            done = done | (token == self.tokenizer.eos_token_id)
            if bool(done.all()):
                break
            inputs = self.model.get_input_embeddings()(token)[:, None]
        return Answer(ids=torch.stack(chosen, dim=1), states=torch.stack(states, dim=1))

    def text(self, ids: Tensor) -> str:
        """One row of generated ids (T,) in words, up to the end; the methods' own tokens are kept."""
        row = ids.tolist()
        if self.tokenizer.eos_token_id in row:
            row = row[: row.index(self.tokenizer.eos_token_id)]
        return str(self.tokenizer.decode(row, skip_special_tokens=False)).strip()

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Ids of `tokens`, which become part of the vocabulary; their embeddings are drawn anew."""
        self.tokenizer.add_tokens(list(tokens), special_tokens=True)
        if len(self.tokenizer) > self.model.get_input_embeddings().num_embeddings:
            self.model.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        return [int(self.tokenizer.convert_tokens_to_ids(token)) for token in tokens]

    def add_lora(self, rank: int, alpha: float, dropout: float) -> None:
        """Low-rank updates of the language model's query and value projections; they alone are trained from now on.

        Source: LISA and SIDA, released code. Rank 0: none, and nothing is frozen.
        """
        if rank == 0:
            return
        from peft import LoraConfig, inject_adapter_in_model

        settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=["q_proj", "v_proj"])
        self.requires_grad_(False)
        inject_adapter_in_model(settings, self.model.model.language_model)

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of the answer to `QUESTION`: whether, and where on a 3x3 grid. Terms: `ce`, `verdict` (share of
        right verdicts, not minimised). ValueError without masks."""
        if batch.mask is None:
            raise ValueError("LLaVA's small pretraining learns from masks: the batch has none")
        classes = three_classes(batch.label, batch.mask)
        answers = [answer(int(c), mask) for c, mask in zip(classes, batch.mask, strict=True)]
        sequences = self.sequences([QUESTION] * len(answers), answers)
        states = self.run(self.prepared(batch.image), sequences.ids)
        loss = self.cross_entropy(states, sequences)
        with torch.no_grad():
            # the verdict is told by the answer's fourth word
            place = (sequences.labels != IGNORED).int().argmax(dim=1) + 3
            rows = torch.arange(len(place), device=place.device)
            right = self.logits(states.last[rows, place - 1]).argmax(dim=-1) == sequences.ids[rows, place]
        return Losses(total=loss, terms={"ce": loss, "verdict": right.float().mean()})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and embeddings."""
        return seen.parameter_groups(self, weight_decay)

    def save_files(self, directory: Path) -> None:
        """`llava.json`: configuration and sizes; the tokenizer; and what forensic backbone the tokens come from."""
        seen.keep(directory, "llava", self.config, self.model.config, self.forensic)
        words.save(self.tokenizer, directory / "tokenizer")

    @property
    def _pad(self) -> int:
        token = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if token is None else token)

    def _image(self) -> slice:
        before = 1 + len(self.encode(self.config.template.split(IMAGE)[0]))
        return slice(before, before + self.config.tokens)


def three_classes(label: Tensor, mask: Tensor) -> Tensor:
    """(B,) of `REAL`, `SYNTHETIC`, `TAMPERED`: label 0; label 1 with a mask of ones everywhere; everything else."""
    everywhere = mask.flatten(1).min(dim=1).values > 0.5
    tampered = torch.where(everywhere, SYNTHETIC, TAMPERED)
    return torch.where(label == 0, REAL, tampered)


def answer(kind: int, mask: Tensor) -> str:
    """What is to be said of an image of class `kind` with `mask` (1,H,W)."""
    if kind != TAMPERED:
        return VERDICTS[kind]
    shares = F.adaptive_avg_pool2d(mask[None].float(), 3).flatten()
    named = [place for place, share in zip(PLACES, shares.tolist(), strict=True) if share >= SHARE]
    return f"{VERDICTS[TAMPERED]} {', '.join(named or [PLACES[int(shares.argmax())]])}."


def verdict(text: str) -> int | None:
    """The class an answer names: the first of the words real, synthetic, tampered in it; None without any."""
    known = {"real": REAL, "synthetic": SYNTHETIC, "tampered": TAMPERED}
    said = [known[piece.strip().lower()] for piece in words.pieces(text) if piece.strip().lower() in known]
    return said[0] if said else None


def texts() -> list[str]:
    """All that the small tokenizer knows the words of."""
    return [*INSTRUCTIONS, *VERDICTS, *PLACES, *FURTHER, *explanations.vocabulary()]


def build(config: Config, assets: Mapping[str, Path]) -> Llava:
    """LLaVA for `config`.

    Assets: `checkpoint`, a local directory in the official format, whose sizes are taken; `run`, a saved directory,
    whose sizes and tokenizer are; `forensic`, the backbone whose tokens are seen. Without any: random, with the small
    tokenizer.
    """
    saved = seen.architecture(assets, "llava")
    config = seen.config(Config, assets, "llava") if saved else config
    traces = seen.forensic_of(assets) if config.forensic else None
    if "checkpoint" in assets:
        model = _official(assets["checkpoint"])
        sizes = model.config.vision_config
        config = replace(
            config,
            image_size=sizes.image_size,
            patch=sizes.patch_size,
            feature_layer=model.config.vision_feature_layer,
        )
        return Llava(config, words.load(assets["checkpoint"]), traces, model)
    tokenizer = words.load(assets["run"] / "tokenizer") if saved else words.build(texts(), [IMAGE])
    return Llava(config, tokenizer, traces, _fresh(config, tokenizer, traces, saved))


def _official(directory: Path) -> Any:
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(str(directory), local_files_only=True)


def _fresh(config: Config, tokenizer: Any, traces: forensic.Forensic | None, saved: dict[str, Any] | None) -> Any:
    """A random model of the sizes in `config`, or of those once saved."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    if saved:
        return LlavaForConditionalGeneration(LlavaConfig.from_dict(saved))
    vision = CLIPVisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=config.vision_mlp,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads,
        num_channels=3 if traces is None else traces.width,
        image_size=config.image_size,
        patch_size=config.patch,
    )
    text = LlamaConfig(
        vocab_size=max(config.vocabulary, len(tokenizer)),
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.positions,
        initializer_range=config.init,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
            image_seq_length=config.tokens,
            vision_feature_layer=config.feature_layer,
            vision_feature_select_strategy="default",
        )
    )
