"""What TamperTok is asked, what it should answer, and how an answer is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unforge import explanations

QUESTION = "Where is the manipulated region?"
"""ASSUMPTION(paper): the prompt of localisation is not given."""
EXPLAIN = explanations.QUESTION
"""Source: TamperTok, Sec. A.5."""
START, END = explanations.START, explanations.END
CLASSES = {"real": "real", "synthetic": "fully synthetic", "tampered": "tampered"}


def code(number: int) -> str:
    """The token of a code."""
    return f"<|mt_{number}|>"


def tokens(codes: int) -> list[str]:
    """Every token that mask tokens need: one for each code, then start and end."""
    return [*(code(i) for i in range(codes)), START, END]


def texts() -> list[str]:
    """Words of the questions and of plain answers."""
    return [QUESTION, EXPLAIN, plain("real"), plain("synthetic"), plain("tampered")]


def plain(kind: str) -> str:
    """The answer without explanation: the mask, then what the image is.

    ASSUMPTION(paper): its form. The mask comes first, so that no wrong word stands before it.
    """
    return f"{explanations.MASK} Conclusion: {CLASSES[kind]}."


def kinds(label: Tensor, mask: Tensor) -> list[str]:
    """`real`, `synthetic` (manipulated everywhere) or `tampered`, of labels (B,) and masks (B,1,H,W).

    An authentic image deserves a mask that is background everywhere, a wholly synthetic one the contrary.
    Source: TamperTok, Sec. A.3.
    """
    whole = mask.flatten(1).amin(1) > 0
    found = ["synthetic" if w else "tampered" for w in whole.tolist()]
    return ["real" if int(given) == 0 else kind for given, kind in zip(label, found, strict=True)]


def filled(text: str, codes: Sequence[int]) -> str:
    """`text` with mask tokens where `{mask}` stands (at its end if it stands nowhere)."""
    mask = START + "".join(code(i) for i in codes) + END
    return text.replace(explanations.MASK, mask, 1) if explanations.MASK in text else f"{text} {mask}"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Ids of the mask tokens."""

    first: int
    """Of code 0; the others follow."""
    codes: int
    latents: int
    start: int
    end: int
    stop: int
    """Of the end of an answer."""
    size: int
    """Of the whole vocabulary."""

    def is_code(self, ids: Tensor) -> Tensor:
        return (ids >= self.first) & (ids < self.first + self.codes)

    def read(self, ids: Sequence[int]) -> tuple[int | None, str]:
        """Where the codes of an answer begin, or None and the reason why it has no mask."""
        starts = [i for i, one in enumerate(ids) if one == self.start]
        if len(starts) != 1:
            return None, f"{len(starts)} times {START}: one is a mask"
        begin = starts[0] + 1
        inside = list(ids[begin : begin + self.latents])
        right = [self.first <= one < self.first + self.codes for one in inside]
        if len(inside) < self.latents or not all(right):
            count = right.index(False) if False in right else len(right)
            return None, f"{count} mask tokens behind {START}: {self.latents} are needed"
        if len(ids) <= begin + self.latents or ids[begin + self.latents] != self.end:
            return None, f"no {END} behind {self.latents} mask tokens"
        return begin, ""

    def constraint(self, written: Tensor, first: bool, limit: int) -> Tensor:
        """bool (B,size): what may follow `written` (B,t) so that the answer holds exactly one whole mask.

        `first`: the mask opens the answer. Otherwise words come before it, until the model opens the mask, wants to
        stop, or no more of `limit` tokens are left than the mask needs.
        """
        rows = []
        left = limit - written.shape[1]
        for ids in written.tolist():
            allowed = torch.zeros(self.size, dtype=torch.bool)
            if self.start not in ids:
                words = not first and left > self.latents + 3
                if words:
                    allowed[:] = True
                    allowed[self.first : self.first + self.codes] = False
                    allowed[[self.end, self.stop]] = False
                allowed[self.start] = True
            elif (done := len(ids) - ids.index(self.start) - 1) < self.latents:
                allowed[self.first : self.first + self.codes] = True
            elif done == self.latents:
                allowed[self.end] = True
            else:
                allowed[:] = True
                allowed[self.first : self.first + self.codes] = False
                allowed[[self.start, self.end]] = False
            rows.append(allowed)
        return torch.stack(rows).to(written.device)
