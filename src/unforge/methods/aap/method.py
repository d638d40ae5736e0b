"""The method: what is learnt, and what is predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge.backbones import consistency, llava, sam, seen, segment
from unforge.methods import _grounded
from unforge.methods.aap import anchor
from unforge.methods.aap.config import Config, sizes
from unforge.types import Batch, Losses, Prediction

CLS, SEG = "[CLS]", "[SEG]"
"""<CLS> and <SEG>, as LISA and SIDA write them: a LISA base knows the second."""
QUESTION = llava.INSTRUCTIONS[1]
"""ASSUMPTION(paper): question and answer are SIDA's."""
ANSWER = f"{CLS} {SEG}"
NAMES = ("real", "fully synthetic", "tampered")
CLASSES = {"real": llava.REAL, "synthetic": llava.SYNTHETIC, "tampered": llava.TAMPERED}
STATES = 64
"""Most values of the state at <CLS> that a prediction gives."""

PARTS = _grounded.PARTS | {"projector": "projector", "cue": "cue"}


@dataclass(frozen=True, kw_only=True)
class Read:
    """What one pass gave of a batch."""

    shown: Tensor
    """What SAM's encoder sees."""
    states: llava.States
    sequences: llava.Sequences
    state: Tensor
    """(B,D): at <CLS>."""
    classes: Tensor
    """(B,3): logits."""
    prompt: Tensor
    """(B,P): of <SEG>."""
    errors: Tensor | None
    """(B,N): d_p, with its gradient; None without a projector."""

    @property
    def map(self) -> Tensor | None:
        """M_e (B,1,h,w), detached."""
        return None if self.errors is None else anchor.grid(self.errors.detach())


class AAP(nn.Module):
    """LLaVA with low-rank updates, a class head at <CLS>, SAM's decoder at <SEG>; P_phi (`projector`) towards the truth
    anchor and, with the error map, P_psi (`cue`). The black box has neither."""

    def __init__(
        self,
        config: Config,
        talking: llava.Llava,
        segmenter: segment.Segmenter,
        tokens: Sequence[int],
        control: consistency.Consistency | None = None,
    ) -> None:
        """`tokens`: ids of <CLS> and <SEG>; `control`: the anchor in place of the vision encoder.

        ValueError for a class that is not there, a map without anchoring, and a layer that is not there.
        """
        super().__init__()
        unknown = sorted(set(config.anchored) - set(CLASSES))
        if unknown:
            raise ValueError(f"anchored {unknown}: accepted are {', '.join(CLASSES)}")
        if config.error_map and not config.anchored:
            raise ValueError("an error map needs a projector: name classes in `anchored`")
        self.config = config
        self.cls, self.seg = tokens
        self.llava = talking.requires_grad_(False)
        self.llava.add_lora(config.lora_rank, config.lora_alpha, config.lora_dropout)
        if config.train_words:
            self.llava.model.get_input_embeddings().requires_grad_(True)
        if config.ce:
            self.llava.model.lm_head.requires_grad_(True)
        layers = int(self.llava.model.config.text_config.num_hidden_layers)
        self.layer = layers // 2 if config.layer is None else config.layer
        if not 1 <= self.layer <= layers:
            raise ValueError(f"layer {self.layer}: the language model has layers 1 to {layers}")
        self.segmenter = segmenter
        width = talking.width
        # ASSUMPTION(paper): SIDA's head
        self.cls_head = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 3))
        self.control = control.freeze() if control is not None else None
        channels = talking.anchor_width if control is None else control.width
        self.projector = anchor.Projector(width, channels) if config.anchored else None
        self.cue = anchor.Cue(config.cue_width, segmenter.sam.width) if config.error_map else None
        self.EXTRAS = ("attention_last",) if config.anchored else ()
        """`predict(..., extras=True)`: the error map as (B,1,1,h,w)."""

    def squared(self, image: Tensor) -> Tensor:
        """Images as all parts see them: where they see pixels, resized to a square, so that image tokens and mask lie
        on the same places (LLaVA cuts the centre out, SAM pads)."""
        side = self.config.input_size or max(image.shape[2:])
        if self.llava.forensic is not None or tuple(image.shape[2:]) == (side, side):
            return image
        return F.interpolate(image, size=(side, side), mode="bilinear", antialias=True, align_corners=False)

    def truth(self, image: Tensor, states: llava.States) -> Tensor:
        """z_a (B,N,A): penultimate patches of the frozen vision encoder, or the control's tokens.

        Source: AAP, Eq. 1.
        """
        if self.control is None:
            return states.anchor
        return self.control.remembered(image, self.llava.side)

    def read(self, image: Tensor, answers: Sequence[str] | None = None) -> Read:
        """One pass over `squared` images (B,3,H,W) and `answers`, or the answer without words."""
        first, second = segment.shown(self.llava, self.segmenter.sam, image)
        given = [ANSWER] * len(image) if answers is None else answers
        sequences = self.llava.sequences([QUESTION] * len(image), given)
        states = self.llava.run(first, sequences.ids, layers=self.projector is not None)
        state = self.llava.before(states, sequences.ids, self.cls)[0]
        errors = None
        if self.projector is not None:
            projected = self.projector(states.at_image(self.layer))
            errors = anchor.deviation(projected, self.truth(image, states), self.config.epsilon)
        return Read(
            shown=second,
            states=states,
            sequences=sequences,
            state=state,
            classes=self.cls_head(state).float(),
            prompt=self.segmenter.prompt(self.llava.before(states, sequences.ids, self.seg)[0]),
            errors=errors,
        )

    def masked(self, read: Read, rows: Tensor | slice = slice(None)) -> Tensor:
        """Logits (b,1,h,w) of SAM's decoder for some `rows`; with an error map, E_e is added to the dense prompt.

        Source: AAP, Eq. 5-7.

        ASSUMPTION(paper): E_p of Eq. 7 is SAM's embedding for "no mask". The paper derives it from <SEG>, whose prompt
        in LISA is sparse, and calls the sum the dense prompt: <SEG> stays the sparse one.
        """
        dense = None
        if self.cue is not None and read.map is not None:
            dense = self.cue(read.map[rows], self.segmenter.sam.grid)
        return self.segmenter(read.shown[rows], read.prompt[rows], dense)

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] to logits (B,1,h,w) of SAM's decoder."""
        return self.masked(self.read(self.squared(image)))

    def loss(self, batch: Batch) -> Losses:
        """Eq. 8: cross-entropy of the class, binary cross-entropy and Dice of the mask, and L_arl.

        Terms `cls`, `bce`, `dice` (0 without a tampered image), `arl` (0 without an anchored one); `margin` (see
        `anchor.margin`, not minimised); `ce` where it has a weight; and per class the images seen and rightly named,
        `seen_real`, `right_real` and so on. The black box has neither `arl` nor `margin`. ValueError without masks.
        ASSUMPTION(paper): masks of tampered images only, as in SIDA's released code; a fully synthetic image has no
        region to find.
        """
        if batch.mask is None:
            raise ValueError("AAP learns from masks: the batch has none")
        kinds = llava.three_classes(batch.label, batch.mask)
        image, size = self.squared(batch.image), (batch.image.shape[2], batch.image.shape[3])
        answers = None
        if self.config.ce:
            answers = [f"{ANSWER} {llava.answer(int(k), m)}" for k, m in zip(kinds, batch.mask, strict=True)]
        read = self.read(image, answers)
        terms = {"cls": F.cross_entropy(read.classes, kinds)}
        terms |= self._masks(read, batch.mask, kinds, (image.shape[2], image.shape[3]), size)
        total = self.config.weight_cls * terms["cls"] + self.config.weight_seg * (terms["bce"] + terms["dice"])
        if read.errors is not None:
            chosen = torch.stack([kinds == CLASSES[name] for name in self.config.anchored]).any(dim=0)
            terms["arl"] = anchor.anchoring(read.errors, chosen)
            terms["margin"] = anchor.margin(read.errors, kinds == llava.REAL, kinds == llava.TAMPERED)
            total = total + self.config.weight_arl * terms["arl"]
        if self.config.ce:
            terms["ce"] = self.llava.cross_entropy(read.states, read.sequences)
            total = total + self.config.ce * terms["ce"]
        right = read.classes.argmax(dim=1) == kinds
        for name, kind in CLASSES.items():
            terms[f"seen_{name}"] = (kinds == kind).float().sum()
            terms[f"right_{name}"] = (right & (kinds == kind)).float().sum()
        return Losses(total=total, terms=terms)

    def _masks(
        self, read: Read, mask: Tensor, kinds: Tensor, shown: tuple[int, int], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """`bce` and `dice` of the tampered images, at `size`; `shown`: of the square."""
        chosen = (kinds == llava.TAMPERED).nonzero()[:, 0]
        # without a tampered image: 0, and still a gradient for every parameter
        picked = chosen if len(chosen) else torch.zeros_like(kinds[:1])
        weight = float(len(chosen) > 0)
        logits = self.segmenter.sam.fitted(self.masked(read, picked), shown, size).float()
        wanted = mask[picked]
        return {
            "bce": weight * sam.bce(logits, wanted),
            "dice": weight * sam.dice(logits, wanted, self.config.dice_scale),
        }

    @torch.no_grad()
    def predict(self, image: Tensor, extras: bool = False) -> Prediction:
        """Probabilities (B,3) of real, fully synthetic and tampered; of manipulation (B,1,H,W); and the class in words,
        or (`ce`, and with `extras`) the answer, generated.

        The score is the probability of not being real. Signals: the state at <CLS>, `state_0` and on (see
        `anchor.states`), `anchor_error`, the mean of the error map, and `deviation` (see `anchor.lengths`), whose means
        over tampered and real images differ by the margin. `image` (B,3,H,W) in [0,1], any size.
        ASSUMPTION(paper): the mask is given whatever the class.
        """
        square, size = self.squared(image), (image.shape[2], image.shape[3])
        read = self.read(square)
        probabilities = read.classes.softmax(dim=1)
        logits = self.segmenter.sam.fitted(self.masked(read), (square.shape[2], square.shape[3]), size).float()
        signals = {f"state_{i}": one for i, one in enumerate(anchor.states(read.state, STATES).unbind(dim=1))}
        shown: dict[str, Tensor] = {}
        if read.errors is not None and read.map is not None:
            signals |= {"anchor_error": read.errors.mean(dim=1), "deviation": anchor.lengths(read.errors)}
            shown = {"attention_last": read.map[:, None]} if extras else {}
        text = tuple(NAMES[i] for i in probabilities.argmax(dim=1).tolist())
        return Prediction(
            mask=logits.sigmoid(),
            score=1 - probabilities[:, llava.REAL],
            class_probs=probabilities,
            text=self.explain(square) if extras and self.config.ce else text,
            signals=signals,
            extras=shown,
        )

    @torch.no_grad()
    def explain(self, image: Tensor) -> tuple[str, ...]:
        """What the model says of each image behind <CLS> and <SEG>, which are given: the most probable next token, up
        to the end. As it is, also where it names another class than the class head, or none."""
        shown = self.llava.prepared(image)
        written = self.llava.generate(shown, QUESTION, self.config.answer_tokens, given=ANSWER)
        said = [self.llava.text(row) for row in written.ids]
        return tuple(" ".join(text.replace(CLS, " ").replace(SEG, " ").split()) for text in said)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay for biases, norms and embeddings; the last layer at its own rate."""
        groups = seen.parameter_groups(self, weight_decay)
        if not self.config.ce:
            return groups
        last = self.llava.model.lm_head.weight
        rest = [p for p in groups[0]["params"] if p is not last]
        own = {"params": [last], "weight_decay": weight_decay, "lr_scale": self.config.answer_lr}
        return [{**groups[0], "params": rest}, groups[1], own]

    def save_files(self, run_dir: Path) -> None:
        """The tokenizer and the sizes of the parts."""
        segment.save(self.llava, self.segmenter.sam, run_dir)
        if self.control is not None:
            consistency.keep(self.control, run_dir)


def build(config: Config, assets: Mapping[str, Path]) -> AAP:
    """AAP for `config`.

    Assets: `backbone` (a LISA, which holds a SAM, or a LLaVA) and, for a LLaVA, `sam`: directories of trained ones or
    official checkpoints; `anchor`, the network of a control; or `run`, a saved run.
    ValueError for an anchor that the configuration does not use.
    """
    if "anchor" in assets and not config.control:
        raise ValueError(f"anchor {assets['anchor']}: only a variant `control` has one beside its vision encoder")
    language, masks = sizes(config)
    talking, segmenter, tokens = segment.grounded(language, masks, assets, [CLS, SEG])
    return AAP(config, talking, segmenter, tokens, consistency.opened(assets) if config.control else None)
