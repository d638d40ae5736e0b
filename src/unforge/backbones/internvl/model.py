"""The model: tiles, text, answers, generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge import paths
from unforge.backbones import describe, forensic, tiles, words
from unforge.backbones.internvl.config import Config, LoRA
from unforge.types import Batch, Losses

if TYPE_CHECKING:
    from transformers import InternVLForConditionalGeneration

START, END = "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
MARKS = (START, END, IMAGE_START, IMAGE, IMAGE_END)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
IGNORED = -100
"""Label of a token that is not learnt."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Images as the vision tower takes them."""

    shown: Tensor
    """(T,3,h,w) in [0,1]: all tiles of all images in their order."""
    values: Tensor
    """(T,C,s,s): what goes into the vision tower."""
    counts: tuple[int, ...]
    """Tiles of each image."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Conversations as tokens, padded at the right."""

    ids: Tensor
    """(B,L) int64."""
    labels: Tensor
    """(B,L): the ids of answers, `IGNORED` elsewhere."""
    lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the model says of the tokens of answers, M of them, in their order."""

    logits: Tensor
    """(M,V)."""
    target: Tensor
    """(M,)."""
    row: Tensor
    """(M,): which conversation a token is of."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What the model wrote."""

    ids: Tensor
    """(B,n): after the end of an answer, padding."""
    logits: Tensor
    """(B,n,V), before any constraint."""


Constraint = Callable[[Tensor], "Tensor | None"]
"""From what was written so far, (B,t), to which tokens may follow, bool (B,V); None: all."""
Turns = Sequence[tuple[str, "str | None"]]
"""Questions and answers of one conversation; the last answer may be None: it is to be written."""


class InternVL(nn.Module):
    """`network` is transformers', `tokenizer` what belongs to it, `forensic` the frozen backbone (small scale)."""

    def __init__(
        self, config: Config, network: InternVLForConditionalGeneration, tokenizer: Any, eyes: forensic.Forensic | None
    ) -> None:
        super().__init__()
        self.config, self.tokenizer, self.network = config, tokenizer, network
        self.forensic = None if eyes is None else eyes.freeze()
        self.memory = forensic.Memory(config.room)
        if config.checkpointing:
            self.network.activation_checkpointing_enable()
        self.register_buffer("mean", torch.tensor(MEAN, device="cpu").view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD, device="cpu").view(1, 3, 1, 1), persistent=False)

    @property
    def vision_layers(self) -> nn.ModuleList:
        """Each takes and gives hidden states (T,1+s*s,C), the first of them the class token's."""
        return self.network.model.vision_tower.encoder.layer

    @property
    def language_layers(self) -> nn.ModuleList:
        """Of the language model."""
        return self.network.model.language_model.layers

    @property
    def vision_side(self) -> int:
        """Positions along a side of a tile in the vision tower."""
        vision = self.network.config.vision_config
        return vision.image_size[0] // vision.patch_size[0]

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile in the language model."""
        return int((self.vision_side * self.network.config.downsample_ratio) ** 2)

    @property
    def width(self) -> int:
        """Of the language model."""
        return self.network.config.text_config.hidden_size

    @property
    def rows(self) -> int:
        """V, of embedding and logits."""
        return self.network.config.text_config.vocab_size

    def tiles(self, image: Tensor) -> Tiles:
        """`image` (B,3,H,W) in [0,1] of any size."""
        if self.forensic is None:
            cuts = [tiles.cut(one, self.config.size, self.config.max_tiles, self.config.thumbnail) for one in image]
            shown = torch.cat(cuts)
            return Tiles(shown=shown, values=(shown - self.mean) / self.std, counts=tuple(map(len, cuts)))
        looked = self.memory(image, self._look) if self.training and self.config.room else self._look(image)
        return Tiles(shown=image, values=looked[0], counts=(1,) * len(image))

    def _look(self, image: Tensor) -> tuple[Tensor, ...]:
        assert self.forensic is not None
        return (self._map(self.forensic.tokens(image, self.config.grid)),)

    def _map(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, (self.config.grid, self.config.grid))

    def imitated(self, mask: Tensor) -> Tensor:
        """`Tiles.values` made of masks (B,1,H,W) alone; see `Forensic.imitation`. ValueError without that backbone."""
        if self.forensic is None:
            raise ValueError("only tokens of the forensic backbone can be imitated: this model sees pixels")
        return self._map(self.forensic.imitation(mask, self.config.grid))

    def image_features(self, values: Tensor) -> Tensor:
        """(T,N,H) of `Tiles.values`: the image tokens as the language model gets them."""
        return self.network.model.get_image_features(pixel_values=values, return_dict=True).pooler_output

    def text(self, turns: Turns, image_tokens: int) -> str:
        """The conversation as the model reads it, the image in its first question. It ends where the model goes on."""
        system = f"{START}system\n{self.config.system}{END}\n" if self.config.system else ""
        image = f"{IMAGE_START}{IMAGE * image_tokens}{IMAGE_END}\n"
        parts = []
        for i, (question, answer) in enumerate(turns):
            parts.append(f"{START}user\n{'' if i else image}{question}{END}\n{START}assistant\n")
            if answer is not None:
                parts.append(f"{answer}{END}\n")
        return system + "".join(parts)

    def encode(self, conversations: Sequence[Turns], image_tokens: Sequence[int], device: torch.device) -> Encoded:
        """Tokens and labels of conversations whose image has this many tokens; an answer's labels end with `END`."""
        found: list[tuple[list[int], list[int]]] = []
        for turns, count in zip(conversations, image_tokens, strict=True):
            ids: list[int] = []
            labels: list[int] = []
            before = ""
            for i, (question, answer) in enumerate(turns):
                asked = self.text([*turns[:i], (question, None)], count)
                ids += (more := self._ids(asked.removeprefix(before)))
                labels += [IGNORED] * len(more)
                if answer is not None:
                    ids += (more := self._ids(f"{answer}{END}"))
                    labels += more
                    ids += (line := self._ids("\n"))
                    labels += [IGNORED] * len(line)
                    before = self.text(turns[: i + 1], count)
            found.append((ids, labels))
        lengths = tuple(len(ids) for ids, _ in found)
        pad, longest = self.tokenizer.pad_token_id or 0, max(lengths)
        return Encoded(
            ids=torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in found], device=device),
            labels=torch.tensor([row + [IGNORED] * (longest - len(row)) for _, row in found], device=device),
            lengths=lengths,
        )

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def id(self, token: str) -> int:
        """Of a token of the vocabulary. ValueError if it is not one."""
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or (found == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token):
            raise ValueError(f"{token!r} is no token of this model's vocabulary")
        return int(found)

    def embed(self, ids: Tensor, features: Tensor) -> Tensor:
        """(B,L,H): embeddings of `ids` (B,L), image tokens replaced by `features` (T,N,H) in their order."""
        embedded = self.network.get_input_embeddings()(ids)
        place = ids == self.id(IMAGE)
        if ids.device.type != "meta" and int(place.sum()) != features.shape[0] * features.shape[1]:
            raise ValueError(f"{int(place.sum())} image tokens in the text, features {tuple(features.shape)}")
        return embedded.masked_scatter(place[..., None], features.to(embedded.dtype))

    def hidden(self, ids: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        """Hidden states (B,L,H) of the language model: the embeddings, each layer's output, the last one normed."""
        out = self.network.model.language_model(
            inputs_embeds=self.embed(ids, features),
            # With a cache, transformers does not look into the positions' values, which meta tensors have not.
            use_cache=ids.device.type == "meta",
            output_hidden_states=True,
        )
        return tuple(out.hidden_states)

    def forward(self, encoded: Encoded, features: Tensor) -> Answers:
        """Logits of every answer token, given all before it. Padding at the right needs no mask: nothing sees it."""
        out = self.network.model.language_model(inputs_embeds=self.embed(encoded.ids, features), use_cache=False)
        target = encoded.labels[:, 1:]
        learnt = target != IGNORED
        row = torch.arange(len(target), device=target.device)[:, None].expand_as(target)
        return Answers(
            logits=self.network.lm_head(out.last_hidden_state[:, :-1][learnt]), target=target[learnt], row=row[learnt]
        )

    @torch.no_grad()
    def generate(
        self,
        encoded: Encoded,
        features: Tensor,
        counts: Sequence[int],
        limit: int,
        constraint: Constraint | None = None,
        cache: bool = True,
    ) -> Generated:
        """Greedy continuation of conversations up to `END` or `limit` tokens.

        `counts`: tiles of each image. `cache` False computes everything anew for each token. Conversations of
        different lengths are continued one by one.
        """
        if len(set(encoded.lengths)) > 1:
            return self._one_by_one(encoded, features, counts, limit, constraint, cache)
        end, pad = self.id(END), self.tokenizer.pad_token_id or 0
        given = self.embed(encoded.ids, features)
        ids = encoded.ids.new_empty(len(encoded.ids), 0)
        done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        logits: list[Tensor] = []
        past: Any = None
        model = self.network.model.language_model
        while len(logits) < limit and not bool(done.all()):
            out = model(inputs_embeds=given, past_key_values=past, use_cache=cache)
            step = self.network.lm_head(out.last_hidden_state[:, -1]).float()
            logits.append(step)
            allowed = constraint(ids) if constraint else None
            best = (step if allowed is None else step.masked_fill(~allowed, -torch.inf)).argmax(-1)
            best = best.masked_fill(done, pad)
            ids = torch.cat([ids, best[:, None]], dim=1)
            done |= best == end
            new = self.network.get_input_embeddings()(best[:, None])
            past = out.past_key_values if cache else None
            given = new if cache else torch.cat([given, new], dim=1)
        return Generated(ids=ids, logits=torch.stack(logits, dim=1))

    def _one_by_one(
        self, encoded: Encoded, features: Tensor, counts: Sequence[int], limit: int, constraint: Any, cache: bool
    ) -> Generated:
        found = []
        for i, (part, length) in enumerate(zip(features.split(list(counts)), encoded.lengths, strict=True)):
            row = slice(i, i + 1)
            one = Encoded(ids=encoded.ids[row, :length], labels=encoded.labels[row, :length], lengths=(length,))
            found.append(self.generate(one, part, counts[row], limit, constraint, cache))
        longest = max(one.ids.shape[1] for one in found)
        pad = self.tokenizer.pad_token_id or 0
        return Generated(
            ids=torch.cat([F.pad(one.ids, (0, longest - one.ids.shape[1]), value=pad) for one in found]),
            logits=torch.cat([F.pad(one.logits, (0, 0, 0, longest - one.logits.shape[1])) for one in found]),
        )

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Ids of `tokens` in the vocabulary; those that are new get a row in embedding and head each."""
        from transformers import AddedToken

        new = self.tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
        if new:
            self.network.resize_token_embeddings(max(self.rows + new, len(self.tokenizer)), mean_resizing=False)
        return [self.id(token) for token in tokens]

    def adapt(self, lora: LoRA) -> None:
        """Put adapters into the language model; of its own weights only embedding and head stay trainable."""
        from peft import LoraConfig, inject_adapter_in_model

        self.network.model.language_model.requires_grad_(False)
        settings = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets)
        )
        inject_adapter_in_model(settings, self.network.model.language_model)
        self.network.get_input_embeddings().requires_grad_(True)
        self.network.lm_head.requires_grad_(True)

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of what is said of each mask (`describe.conversation`), and of as many random regions as
        `imitated` says, shown by imitated tokens. Term `text`. ValueError without masks."""
        if batch.mask is None:
            raise ValueError("this backbone learns to describe masks: the batch has none")
        shown = self.tiles(batch.image)
        values, counts, masks = shown.values, list(shown.counts), list(batch.mask)
        if self.forensic is not None:
            values, mask = turned(values, batch.mask)
            extra = describe.regions(round(self.config.imitated * len(mask)), 64).to(mask)
            values, masks = torch.cat([values, self.imitated(extra)]), [*mask, *extra]
            counts += [1] * len(extra)
        talk = [describe.conversation(one) for one in masks]
        encoded = self.encode(talk, [count * self.tile_tokens for count in counts], values.device)
        answers = self(encoded, self.image_features(values))
        loss = F.cross_entropy(answers.logits.float(), answers.target)
        return Losses(total=loss, terms={"text": loss})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms, layer scales, the class token and positions."""
        return groups(self, weight_decay)

    def parts(self) -> dict[str, int]:
        """Parameters of the vision tower, the projector and the language model (with its head)."""
        model = self.network.model
        head = [] if self.network.config.tie_word_embeddings else list(self.network.lm_head.parameters())
        return {
            "vision": sum(p.numel() for p in model.vision_tower.parameters()),
            "projector": sum(p.numel() for p in model.multi_modal_projector.parameters()),
            "language": sum(p.numel() for p in [*model.language_model.parameters(), *head]),
        }

    def save_files(self, directory: Path) -> None:
        """What `build(config, {"run": directory})` needs beside the weights: architecture, tokenizer, settings."""
        self.network.config.save_pretrained(directory / "architecture")
        words.save(self.tokenizer, directory / "tokenizer")
        eyes = None if self.forensic is None else dataclasses.asdict(self.forensic.config)
        paths.write_json(directory / "internvl.json", {"config": dataclasses.asdict(self.config), "forensic": eyes})


def groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters of `module`: matrices with `weight_decay`; vectors, class token and positions without."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    free = [p for n, p in named if p.ndim <= 1 or n.endswith(("cls_token", "position_embeddings"))]
    held = {id(p) for p in free}
    return [
        {"params": [p for _, p in named if id(p) not in held], "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def turned(values: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Maps (B,C,s,s), each of the batch turned and flipped in one of the 8 ways, and `others` in the same way.

    Draws from torch's generator. Ours: features of a frozen network, so that an image need not be looked at again.
    """
    ways = torch.randint(8, (len(values),)).tolist()
    return tuple(
        torch.stack([_way(one, way) for one, way in zip(maps, ways, strict=True)]) for maps in (values, *others)
    )


def _way(map_: Tensor, way: int) -> Tensor:
    map_ = torch.rot90(map_, way % 4, (1, 2))
    return map_.flip(2) if way >= 4 else map_
