"""The method: what is learnt and how a mask is written and decoded."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge import backbones, masks, methods, paths
from unforge.backbones import describe, forensic, internvl
from unforge.masks import hierarchical, splatting
from unforge.methods.tampertok import answers
from unforge.methods.tampertok.config import Config
from unforge.methods.tampertok.fusion import Concatenation, Injection
from unforge.types import Batch, Losses, Prediction

REGION = 64
"""Side of the random regions that are imitated (pixels)."""
CONCLUSION = 16
"""Most tokens beside the mask of an answer without explanation."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Images on their way into the language model."""

    tokens: Tensor
    """(T,N,H)."""
    counts: tuple[int, ...]
    """Tiles of each image."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the model wrote of each image, and how it is read."""

    text: tuple[str, ...]
    codes: Tensor
    """(B,L) int64; -1 where the answer is malformed."""
    weights: Tensor
    """(B,L,K): of each code, rows sum to 1; 0 where the answer is malformed."""
    reasons: tuple[str, ...]
    """Why an answer is malformed; empty where it is not."""


class TamperTok(nn.Module):
    """TamperTok and its ablation rows.

    `model` is the multimodal model, whose vocabulary holds the mask tokens; `masks` the frozen mask tokenizer;
    `expert` the frozen forensic expert (None without fusion).
    """

    EXTRAS = ("confidence", "malformed")
    """`predict(..., extras=True)`: probability of each code that was written (B,L), of 0 where there is none; 1 for
    each answer that holds no mask (B,)."""

    def __init__(
        self,
        config: Config,
        model: internvl.InternVL,
        tokenizer: masks.MaskTokenizer,
        expert: nn.Module | None,
        about: Mapping[str, Any],
        texts: Mapping[str, str] | None = None,
        explained: bool = False,
    ) -> None:
        """`about`: what `save_files` says of the expert; `texts`: explanations by key; `explained`: whether answers
        have any."""
        super().__init__()
        self.config, self.about, self.texts = config, about, dict(texts or {})
        self.explained = config.explained or explained or bool(texts)
        self.model = model
        self.masks = tokenizer.requires_grad_(False).eval()
        self.expert = None if expert is None else expert.requires_grad_(False).eval()
        self.memory = forensic.Memory(config.room)
        ids = model.add_tokens(answers.tokens(tokenizer.config.codes))
        if ids[:-2] != list(range(ids[0], ids[0] + tokenizer.config.codes)):
            raise ValueError("the mask tokens' ids do not follow one another: the vocabulary holds some already")
        self.words = answers.Vocabulary(
            first=ids[0], codes=tokenizer.config.codes, latents=tokenizer.config.latents, start=ids[-2], end=ids[-1],
            stop=model.id(internvl.END), size=model.rows,
        )  # fmt: skip
        if config.lora is not None:
            model.adapt(config.lora)
        if config.sharded:
            # by name: training lies above the methods
            self.fit = importlib.import_module("unforge.train.sharded").fit
        self.injection: Injection | None = None
        self.concatenation: Concatenation | None = None
        if config.fusion == "swei":
            width = model.network.config.vision_config.hidden_size
            self.injection = Injection(config.layers, width, self._channels(), config.swei_ratio)
            self.injection.attach(model.vision_layers)
        elif config.fusion in ("dimension", "sequence"):
            self.concatenation = Concatenation(config.fusion, model.width, self._channels())
        elif config.fusion != "none":
            raise ValueError(f"fusion {config.fusion!r}: swei, dimension, sequence and none are accepted")
        with torch.no_grad():
            codebook = tokenizer.codebook()
        if codebook.device.type == "meta":
            codebook = torch.eye(*codebook.shape, device="cpu")
        near = splatting.neighbourhoods(codebook.cpu(), config.k, config.temperature, config.neighbourhood)
        self.register_buffer("near", near.indices, persistent=True)
        self.register_buffer("near_weights", near.weights, persistent=True)

    def train(self, mode: bool = True) -> TamperTok:
        """The frozen tokenizer and expert stay in eval mode."""
        super().train(mode)
        self.masks.eval()
        if self.expert is not None:
            self.expert.eval()
        return self

    def prepared(self, image: Tensor) -> Tensor:
        """Images as they are shown: at small scale, where the image's tokens are a square grid whatever its shape,
        continued to a square at the bottom and the right, as masks are."""
        height, width = image.shape[2:]
        if self.model.forensic is None or height == width:
            return image
        side = max(height, width)
        return F.pad(image, (0, side - width, 0, side - height), mode="replicate")

    def _channels(self) -> tuple[int, int]:
        """Of the expert's two maps."""
        assert self.expert is not None, "only a fusion asks"
        device = next(self.expert.parameters()).device
        # Buffers of a network on meta tensors may hold values.
        expert = copy.deepcopy(self.expert).to("meta") if device.type == "meta" else self.expert
        with torch.no_grad():
            shallow, deep = self._maps(torch.zeros(1, 3, 64, 64, device=device), expert)
        return shallow.shape[1], deep.shape[1]

    def _maps(self, shown: Tensor, expert: nn.Module | None = None) -> tuple[Tensor, ...]:
        """The expert's shallow and deep map of tiles (T,3,h,w) in [0,1]. ValueError for a name it does not give.

        ASSUMPTION(paper): the expert sees each tile as the vision tower does.
        """
        maps: dict[str, Tensor] = (expert or self.expert).features(shown)
        names = self.config.maps or (next(iter(maps)), list(maps)[-1])
        if len(names) != 2 or not set(names) <= set(maps):
            raise ValueError(f"maps {names}: two of {', '.join(maps)} are needed")
        return maps[names[0]].float(), maps[names[1]].float()

    @torch.no_grad()
    def expert_maps(self, shown: Tensor) -> tuple[Tensor, ...]:
        """Shallow and deep map of tiles, kept in training where the configuration has room for it; () without."""
        if self.config.fusion == "none":
            return ()
        if self.training and self.config.room:
            return self.memory(shown, self._maps)
        return self._maps(shown)

    def see(self, values: Tensor, maps: tuple[Tensor, ...], counts: Sequence[int]) -> Seen:
        """Image tokens of what the vision tower takes (T,C,s,s) and the expert's maps (T,c,h,w)."""
        if self.injection is not None:
            self.injection.give((maps[0], maps[1]))
        tokens = self.model.image_features(values)
        if self.concatenation is not None:
            tokens = self.concatenation(tokens, *maps)
        return Seen(tokens=tokens, counts=tuple(counts))

    def encode(self, seen: Seen, questions: Sequence[str], given: Sequence[str | None]) -> internvl.Encoded:
        """Conversations of one question and its answer (None: to be written)."""
        talks = [[pair] for pair in zip(questions, given, strict=True)]
        return self.model.encode(talks, [count * seen.tokens.shape[1] for count in seen.counts], seen.tokens.device)

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of words, KSD of mask tokens, and the localisation loss of the softly decoded mask.

        Terms `text`, `ksd`, `bce`, `dice`. ValueError without masks.
        """
        if batch.mask is None:
            raise ValueError("TamperTok learns from masks: the batch has none")
        if self.config.explained and not self.texts:
            raise ValueError("variant `explained` learns from texts: give the asset `explanations`")
        image, mask, config = self.prepared(batch.image), batch.mask, self.config
        if image.shape[2:] != mask.shape[2:]:
            mask = F.pad(mask, (0, image.shape[3] - mask.shape[3], 0, image.shape[2] - mask.shape[2]))
        kinds = answers.kinds(batch.label, batch.mask)
        wanted = [self.texts.get(key) for key in batch.key]
        tiles = self.model.tiles(image)
        values, maps, counts = tiles.values, self.expert_maps(tiles.shown), list(tiles.counts)
        if self.model.forensic is not None and self.training:
            values, mask, *rest = internvl.turned(values, mask, *maps)
            maps = tuple(rest)
        squares = self.masks.squared(mask)
        if self.model.forensic is not None and config.imitated and self.training:
            extra = describe.regions(round(config.imitated * len(mask)), REGION).to(mask)
            values = torch.cat([values, self.model.imitated(extra)])
            maps = tuple(F.pad(x, (0, 0, 0, 0, 0, 0, 0, len(extra))) for x in maps)
            squares = torch.cat([squares, self.masks.squared(extra)])
            kinds += answers.kinds(extra.new_ones(len(extra)), extra)
            wanted, counts = wanted + [None] * len(extra), counts + [1] * len(extra)
        codes = self.masks.encode(squares)
        seen = self.see(values, maps, counts)
        questions = [answers.QUESTION if text is None else answers.EXPLAIN for text in wanted]
        texts = [text or answers.plain(kind) for text, kind in zip(wanted, kinds, strict=True)]
        filled = [answers.filled(text, row) for text, row in zip(texts, codes.tolist(), strict=True)]
        said = self.model(self.encode(seen, questions, filled), seen.tokens)
        return self._losses(said, squares)

    def _losses(self, said: internvl.Answers, squares: Tensor) -> Losses:
        config, words = self.config, self.words
        logits = said.logits.float()
        code = words.is_code(said.target)
        near = splatting.Neighbourhoods(indices=self.near, weights=self.near_weights)
        own = logits[code]
        chosen = own[:, words.first : words.first + words.codes]
        # Codes first, the rest of the vocabulary behind them: KSD counts codes from 0.
        ordered = torch.cat([chosen, own[:, : words.first], own[:, words.first + words.codes :]], dim=1)
        terms = {
            "text": F.cross_entropy(logits[~code], said.target[~code]),
            "ksd": splatting.loss(ordered, said.target[code] - words.first, near),
        }
        weights = (config.sharpness * chosen).softmax(-1).unflatten(0, (len(squares), words.latents))
        terms["bce"], terms["dice"] = hierarchical.terms(self.masks.logits(weights @ self.masks.codebook()), squares)
        localisation = terms["bce"] + config.dice * terms["dice"]
        total = config.weight_text * terms["text"] + config.weight_ksd * terms["ksd"]
        return Losses(total=total + config.weight_localisation * localisation, terms=terms)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the codes (B,L,K) in one pass over question and mask tokens, the codes all 0: what is counted."""
        tiles = self.model.tiles(self.prepared(image))
        seen = self.see(tiles.values, self.expert_maps(tiles.shown), tiles.counts)
        text = answers.filled(answers.plain("tampered"), [0] * self.words.latents)
        encoded = self.encode(seen, [answers.QUESTION] * len(image), [text] * len(image))
        place = self.model.encode([[(answers.QUESTION, None)]], [seen.counts[0] * seen.tokens.shape[1]], image.device)
        begin = place.ids.shape[1]
        states = self.model.hidden(encoded.ids, seen.tokens)[-1][:, begin : begin + self.words.latents]
        return self.model.network.lm_head(states)[..., self.words.first : self.words.first + self.words.codes]

    @torch.no_grad()
    def write(self, seen: Seen, cache: bool = True) -> Written:
        """Generate an answer for each image and read its mask tokens; `cache`: see `InternVL.generate`."""
        config, words = self.config, self.words
        question = answers.EXPLAIN if self.explained else answers.QUESTION
        count = len(seen.counts)
        encoded = self.encode(seen, [question] * count, [None] * count)

        limit = config.limit if self.explained else words.latents + CONCLUSION

        def held(written: Tensor) -> Tensor:
            return words.constraint(written, not self.explained, limit)

        made = self.model.generate(
            encoded, seen.tokens, seen.counts, limit, held if config.constrained else None, cache
        )
        codes = made.ids.new_full((count, words.latents), -1)
        weights = made.logits.new_zeros(count, words.latents, words.codes)
        text, reasons = [], []
        for i, ids in enumerate(made.ids.tolist()):
            ids = ids[: ids.index(words.stop)] if words.stop in ids else ids
            begin, reason = words.read(ids)
            if begin is not None:
                part = slice(begin, begin + words.latents)
                codes[i] = made.ids[i, part] - words.first
                logits = made.logits[i, part, words.first : words.first + words.codes]
                weights[i] = (config.sharpness * logits).softmax(-1)
            text.append(self.model.tokenizer.decode(ids, skip_special_tokens=False))
            reasons.append(reason)
        return Written(text=tuple(text), codes=codes, weights=weights, reasons=tuple(reasons))

    @torch.no_grad()
    def decode(self, written: Written) -> Tensor:
        """(B,1,S,S) probability of manipulation; 0 everywhere where the answer is malformed."""
        whole = (written.codes >= 0).all(1)
        size = self.masks.config.size
        found = written.weights.new_zeros(len(whole), 1, size, size)
        if bool(whole.any()):
            soft = self.config.decode == "soft"
            found[whole] = (
                self.masks.decode_soft(written.weights[whole]) if soft else self.masks.decode(written.codes[whole])
            ).to(found)
        return found

    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """Probability of manipulation (B,1,h,w), the image's part of the mask tokenizer's square; its largest value as
        the score; the codes (B,L), -1 where malformed; the generated text; with SwEI the intensities (B,) of each
        layer as signals `i_avg_<layer>`.

        `image` (B,3,H,W) in [0,1], any size from 1x1.
        """
        shape = (int(image.shape[2]), int(image.shape[3]))
        tiles = self.model.tiles(self.prepared(image))
        with torch.no_grad():
            seen = self.see(tiles.values, self.expert_maps(tiles.shown), tiles.counts)
        signals = None if self.injection is None else self.injection.take(seen.counts)
        written = self.write(seen)
        mask = self.masks.crop_to(self.decode(written), shape)
        given: dict[str, Tensor] = {}
        if extras:
            chosen = written.weights.gather(2, written.codes.clamp(min=0)[..., None])[..., 0]
            given = {"confidence": chosen, "malformed": (written.codes < 0).any(1).float()}
        return Prediction(
            mask=mask, score=mask.flatten(1).amax(1), tokens=written.codes, text=written.text, signals=signals,
            extras=given,
        )  # fmt: skip

    def shard_units(self) -> list[nn.Module]:
        """What is gathered one at a time when training is sharded: every layer of both transformers."""
        return [*self.model.vision_layers, *self.model.language_layers]

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups of the multimodal model, and those of what takes in the expert, with `lr_scale`."""
        found = internvl.groups(self.model, weight_decay)
        for part in (self.injection, self.concatenation):
            if part is not None:
                found += [{**group, "lr_scale": self.config.swei_lr} for group in internvl.groups(part, weight_decay)]
        return [group for group in found if group["params"]]

    def save_files(self, directory: Path) -> None:
        """What `build(config, {"run": directory})` needs beside config and weights."""
        self.model.save_files(directory)
        entry = {"masks": dataclasses.asdict(self.masks.config), "explained": self.explained}
        paths.write_json(directory / "tampertok.json", entry)
        if self.expert is not None:
            paths.write_json(directory / "expert.json", dict(self.about))


def build(config: Config, assets: Mapping[str, Path]) -> TamperTok:
    """TamperTok for `config`. Assets, each optional: `backbone`, a pretrained InternVL (or `checkpoint`, an official
    one's directory); `codebook`, a trained mask tokenizer; `expert`, the run of a trained expert; `explanations`, a
    Parquet file of texts by key; `run`, a saved run, of which only the architecture is taken.

    ValueError when the expert is another than the configuration names.
    """
    run = assets.get("run")
    if run is not None:
        saved = paths.read_json(run / "tampertok.json")
        expert, about = None, {}
        if config.fusion != "none":
            about = paths.read_json(run / "expert.json")
            expert = methods.restore(about)
        model = internvl.build(config.internvl, {"run": run})
        tokenizer = masks.build(masks.restored(saved["masks"]))
        return TamperTok(config, model, tokenizer, expert, about, explained=saved["explained"])
    expert, about = _expert(config, assets)
    tokenizer = masks.load(assets["codebook"]) if "codebook" in assets else masks.build(config.masks)
    return TamperTok(config, _model(config, assets), tokenizer, expert, about, _texts(assets))


def _model(config: Config, assets: Mapping[str, Path]) -> internvl.InternVL:
    if "backbone" not in assets:
        given = {name: assets[name] for name in ("checkpoint", "forensic") if name in assets}
        return internvl.build(config.internvl, given)
    found = backbones.load(assets["backbone"])
    if not isinstance(found, internvl.InternVL):
        raise ValueError(f"{assets['backbone']} holds a {type(found).__name__}: TamperTok builds on InternVL")
    tiling = {"max_tiles": config.internvl.max_tiles, "thumbnail": config.internvl.thumbnail}
    found.config = dataclasses.replace(found.config, **tiling)
    return found


def _expert(config: Config, assets: Mapping[str, Path]) -> tuple[nn.Module | None, dict[str, Any]]:
    """The expert with its weights, or a fresh one of the model's scale, and its `config.json`."""
    if config.fusion == "none":
        return None, {}
    if "expert" in assets:
        about = paths.read_json(assets["expert"] / "config.json")
        if about["method"] != config.expert:
            raise ValueError(f"{assets['expert']} holds {about['method']}: this variant's expert is {config.expert}")
        return methods.load(assets["expert"]), about
    scale: methods.Scale = "small" if config.internvl.grid else "paper"
    settings = methods.config(config.expert, "", scale)
    entry = {"method": config.expert, "variant": "", "scale": scale, "config": dataclasses.asdict(settings)}
    return methods.build(config.expert, settings), entry


def _texts(assets: Mapping[str, Path]) -> dict[str, str]:
    """Explanations by key. ValueError when the file has not the columns `key` and `text`."""
    if "explanations" not in assets:
        return {}
    import pyarrow.parquet as pq

    table = pq.read_table(assets["explanations"])
    if not {"key", "text"} <= set(table.column_names):
        raise ValueError(f"{assets['explanations']} has the columns {table.column_names}: key and text are needed")
    return dict(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True))
