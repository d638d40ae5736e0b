"""QTFP: a tuned CLIP tower, queries over its patches, and what is learnt from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.backbones import clip, internvl, seen
from unforge.methods.qtfp import losses, tuning
from unforge.methods.qtfp.config import Config
from unforge.methods.qtfp.queries import Queries
from unforge.types import Batch, Losses, Prediction

QUANTILES = 16
PARTS = {"tower": "tower.model", "queries": "queries", "head": "head"}
"""Counted by themselves."""
TRAINABLE = True
"""What learns is counted as a part too."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a pass gives."""

    logits: Tensor
    """(B,2): real, fake."""
    seen: clip.Seen
    found: Tensor | None
    """(B,D): the global token, mean of the queries; None without queries."""
    attention: Tensor | None
    """(B,K,N) of each query, mean over heads."""


class Qtfp(nn.Module):
    """`tower` is the backbone; `head` tells real from fake."""

    EXTRAS = ("attention_last", "attention_cls")

    def __init__(self, config: Config, tower: clip.Clip, split: bool = True) -> None:
        """`split` False: weights are loaded later (see `tuning.apply`)."""
        super().__init__()
        self.config = config
        self.tower = tower
        self.tower.classes = self.tower.projection = None
        tuning.apply(tower.model, config, split)
        width, wide = tower.width, config.classified == "concat"
        queried = config.classified != "cls"
        self.queries = Queries(width, config.queries, config.heads, config.spread) if queried else None
        self.mix = nn.Parameter(torch.zeros(2)) if config.classified == "weighted" else None
        self.head = nn.Linear(2 * width if wide else width, 2)

    def read(self, shown: Tensor, attention: bool = True) -> Read:
        """One pass over what `tower.prepared` gives; `attention`: whether the class token's is wanted."""
        told = self.tower.look(shown, attention)
        if self.queries is None:
            return Read(logits=self.head(told.token), seen=told, found=None, attention=None)
        each, looked = self.queries(told.patches)
        found = each.mean(1)
        return Read(logits=self.head(self._classified(told.token, found)), seen=told, found=found, attention=looked)

    def _classified(self, token: Tensor, found: Tensor) -> Tensor:
        if self.config.classified == "query":
            return found
        if self.config.classified == "concat":
            return torch.cat([token, found], 1)
        shares = token.new_full((2,), 0.5) if self.mix is None else self.mix.softmax(0)
        return shares[0] * token + shares[1] * found

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] to logits (B,2) of real and fake."""
        return self.read(self.tower.prepared(image), attention=False).logits

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy, and the weighted losses of the configuration. Terms `ce`, `flcl` (or MACL's value), `raal` (or
        the tokens' distance), each 0 where its weight is; `snr`, not minimised; `effort` where its losses are used.

        Masks are used by MACL only; ValueError when it finds none.
        """
        config = self.config
        shown, forged, fake = self.tower.prepared(batch.image), None, batch.label > 0
        if config.contrast == "macl" and config.contrast_weight:
            forged = self._forged(batch.mask)
        if config.turned and self.training:
            turned = internvl.turned(shown, *(() if forged is None else (forged,)))
            shown, forged = turned[0], turned[1] if forged is not None else None
        aligned = bool(config.align_weight) and config.align == "attention"
        read = self.read(shown, aligned)
        terms = {"ce": F.cross_entropy(read.logits.float(), batch.label)}
        zero = torch.zeros_like(terms["ce"])
        terms |= {"flcl": self._contrast(read.seen.patches, fake, forged) if config.contrast_weight else zero}
        terms |= {"raal": self._aligned(read, fake) if config.align_weight else zero}
        total = terms["ce"] + config.contrast_weight * terms["flcl"] + config.align_weight * terms["raal"]
        if config.tuning == "effort" and (config.orthogonality or config.singular):
            terms["effort"] = self._effort()
            total = total + terms["effort"]
        terms["snr"] = losses.signal_to_noise(read.seen.patches.detach(), fake)
        return Losses(total=total, terms=terms)

    def _forged(self, mask: Tensor | None) -> Tensor:
        """(B,1,h,w) bool: patches that are forged."""
        if mask is None:
            raise ValueError("MACL learns from masks: the batch has none")
        share = F.adaptive_avg_pool2d(mask.float(), self.tower.side)
        return share > self.config.forged_share

    def _contrast(self, patches: Tensor, fake: Tensor, forged: Tensor | None) -> Tensor:
        config = self.config
        if forged is not None:
            return losses.macl(patches, forged.flatten(1), config.temperature, config.anchors)
        return losses.flcl(patches, fake, config.temperature, config.sharpness, config.anchors)

    def _aligned(self, read: Read, fake: Tensor) -> Tensor:
        if read.found is None or read.attention is None:
            raise ValueError("nothing to align: the variant has no queries")
        if self.config.align == "token":
            return losses.token_distance(read.found, read.seen.token, fake)
        assert read.seen.attention is not None
        return losses.attention_distance(read.attention, read.seen.attention, fake, self.config.distance)

    def _effort(self) -> Tensor:
        """ASSUMPTION(paper): Effort's losses are means over its layers."""
        layers = tuning.residuals(self.tower.model)
        orthogonality = torch.stack([layer.orthogonality() for layer in layers]).mean()
        drift = torch.stack([layer.drift() for layer in layers]).mean()
        return self.config.orthogonality * orthogonality + self.config.singular * drift

    @torch.no_grad()
    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """The probability (B,) of being fake. `image` (B,3,H,W) in [0,1], any size.

        Signals (B,): `query_attention_00` .. `_15` and `cls_attention_00` .. `_15`, quantiles (the first the least, the
        last the largest) of N times the attention over the N patches, which is 1 where attention is even. Queries:
        mean over queries and heads; none without them. Extras (B,1,1,h,w): `attention_last`, of the queries or else of
        the class token, and `attention_cls`.
        """
        read = self.read(self.tower.prepared(image))
        assert read.seen.attention is not None
        maps = {"cls": read.seen.attention}
        if read.attention is not None:
            maps["query"] = read.attention.float().mean(1)
        places = torch.linspace(0, 1, QUANTILES, device=image.device)
        signals: dict[str, Tensor] = {}
        for name, attention in maps.items():
            values = torch.quantile(attention * attention.shape[1], places, dim=1)
            signals |= {f"{name}_attention_{i:02d}": value for i, value in enumerate(values)}
        shown = {}
        if extras:
            side = self.tower.side
            wanted = {"attention_last": maps.get("query", maps["cls"]), "attention_cls": maps["cls"]}
            shown = {name: one.view(-1, 1, 1, side, side) for name, one in wanted.items()}
        return Prediction(score=read.logits.float().softmax(1)[:, 1], signals=signals, extras=shown)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and embeddings."""
        return seen.parameter_groups(self, weight_decay)

    def save_files(self, run_dir: Path) -> None:
        """The sizes of the tower."""
        self.tower.save_files(run_dir)


def build(config: Config, assets: Mapping[str, Path]) -> Qtfp:
    """QTFP for `config`. Assets: `backbone`, a trained CLIP tower or an official folder; or `run`, a saved run.

    ValueError when the backbone is another.
    """
    if "run" in assets:
        return Qtfp(config, clip.build(config.clip, {"run": assets["run"]}), split=False)
    if "backbone" not in assets:
        return Qtfp(config, clip.build(config.clip, {}))
    tower = seen.opened(assets["backbone"], "clip", config.clip)
    if not isinstance(tower, clip.Clip):
        raise ValueError(f"{assets['backbone']} holds a {type(tower).__name__}: QTFP builds on CLIP")
    return Qtfp(config, tower)
