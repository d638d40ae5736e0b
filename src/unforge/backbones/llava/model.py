"""LLaVA itself: what its tower sees, what its language model makes of it, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.backbones import forensic, seen, words
from unforge.backbones.llava.answers import IMAGE, QUESTION, answer, three_classes
from unforge.backbones.llava.config import Config
from unforge.types import Batch, Losses

IGNORED = -100
"""Label of positions that are not learnt."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
NORMALISATION = {
    "clip": (MEAN, STD),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of pixels in [0,1], by the kind of the vision tower."""


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
    anchor: Tensor
    """(B,N,A), without gradient: what `Llava.anchor` gives."""
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
        mean, std = NORMALISATION[config.tower]
        self.register_buffer("mean", torch.tensor(mean, device="cpu").view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, device="cpu").view(1, 3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """Channels of the language model's states."""
        return int(self.model.config.text_config.hidden_size)

    @property
    def anchor_width(self) -> int:
        """Channels of `anchor`."""
        sizes = self.model.config.vision_config
        return int(sizes.num_channels if self.config.forensic else sizes.hidden_size)

    @property
    def side(self) -> int:
        """Image tokens in a row; they lie on a square."""
        return self.config.image_size // self.config.patch

    def region(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Part (top, left, bottom, right) of an image of `size` (H,W) that `prepared` shows, as shares of its sides."""
        if self.config.forensic or self.config.tower == "siglip":
            return 0.0, 0.0, 1.0, 1.0
        height, width = size
        rows, columns = min(1.0, width / height), min(1.0, height / width)
        return (1 - rows) / 2, (1 - columns) / 2, (1 + rows) / 2, (1 + columns) / 2

    def prepared(self, image: Tensor) -> Tensor:
        """What the vision tower sees of `image` (B,3,H,W) in [0,1], any size.

        Forensic tokens (B,C,g,g) of the whole image; or pixels (B,3,S,S), normalised. CLIP: the short side brought to
        S (bicubic), the centre cut out; SigLIP: both sides brought to S (bilinear). Source: their image processors in
        transformers; LISA and SIDA use CLIP's.
        """
        size = self.config.image_size
        if self.forensic is not None:
            return seen.tokens(self.forensic, self.memory, image, size)
        height, width = image.shape[2:]
        if self.config.tower == "siglip":
            if (height, width) != (size, size):
                image = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
            return (image - self.mean) / self.std
        scale = size / min(height, width)
        shape = (max(size, round(height * scale)), max(size, round(width * scale)))
        if shape != (height, width):
            image = F.interpolate(image, size=shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        return (image[:, :, top : top + size, left : left + size] - self.mean) / self.std

    def features(self, shown: Tensor) -> Tensor:
        """(B,N,C) of the vision tower, row by row, for what `prepared` gives."""
        return self._patches(self._tower(shown)[self.config.feature_layer])

    @torch.no_grad()
    def anchor(self, shown: Tensor) -> Tensor:
        """(B,N,A): what stays as it is, however the language model learns, for what `prepared` gives.

        The patches of the vision tower's penultimate layer; where the tower reads forensic tokens, those tokens.
        Source: AAP, Eq. 1. ANCHOR_REASON
        """
        return self._anchor(shown, () if self.config.forensic else self._tower(shown))

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
        tower = self._tower(shown)
        vision = self._patches(tower[self.config.feature_layer])
        inputs = self.embedded(ids, vision)
        # meta tensors (counting) have no values from which transformers could tell that no mask is needed
        mask = torch.ones(1, 1, *2 * ids.shape[1:], dtype=torch.bool, device="meta") if inputs.is_meta else None
        out = self.model.model.language_model(
            inputs_embeds=inputs, attention_mask=mask, output_hidden_states=layers, use_cache=False
        )
        kept = tuple(out.hidden_states) if layers else ()
        anchor = self._anchor(shown, tower)
        return States(last=out.last_hidden_state, vision=vision, anchor=anchor, layers=kept, image=self._image())

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
    def generate(self, shown: Tensor, prompt: str, tokens: int, given: str = "") -> Answer:
        """The most probable next token, up to `tokens` times or to the end, with a key-value cache. `given`: how the
        answer begins, which is not among what was generated."""
        prompts, answers = [prompt] * len(shown), [given] * len(shown)
        # without the end behind what is given
        ids = self.sequences(prompts, answers).ids[:, :-1] if given else self.sequences(prompts).ids
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

    def _tower(self, shown: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.model.vision_tower(shown, output_hidden_states=True).hidden_states)

    def _patches(self, hidden: Tensor) -> Tensor:
        return hidden[:, 1:] if self.config.tower == "clip" else hidden

    def _anchor(self, shown: Tensor, tower: tuple[Tensor, ...]) -> Tensor:
        if not self.config.forensic:
            return self._patches(tower[-2]).detach()
        if self.config.patch > 1:
            shown = F.avg_pool2d(shown, self.config.patch)
        return shown.flatten(2).transpose(1, 2)

    @property
    def _pad(self) -> int:
        token = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if token is None else token)

    def _image(self) -> slice:
        before = 1 + len(self.encode(self.config.template.split(IMAGE)[0]))
        return slice(before, before + self.config.tokens)
