"""Questions, answers, and what is a well-formed mask in an answer."""

from __future__ import annotations

import pytest
import torch

from unforge import explanations
from unforge.methods.tampertok import answers

# Ids: 0-9 words (9 stops), 10-13 the codes, 14 start, 15 end; a mask has 3 codes.
WORDS = answers.Vocabulary(first=10, codes=4, latents=3, start=14, end=15, stop=9, size=16)


@pytest.mark.parametrize(
    ("ids", "begin", "reason"),
    [
        ([14, 10, 13, 11, 15, 2], 1, ""),
        ([3, 4, 14, 10, 10, 10, 15], 3, ""),
        ([3, 4, 5], None, "0 times"),
        ([], None, "0 times"),
        ([14, 10, 10, 10, 15, 14], None, "2 times"),
        ([14, 10, 10, 15], None, "2 mask tokens"),
        ([14, 10, 3, 10, 15], None, "1 mask tokens"),
        ([14, 10, 10, 10], None, "no <|mt_end|>"),
        ([14, 10, 10, 10, 10, 15], None, "no <|mt_end|>"),
        ([15, 10, 10, 10, 14], None, "0 mask tokens"),
    ],
)
def test_reading(ids: list[int], begin: int | None, reason: str) -> None:
    found = WORDS.read(ids)
    assert found[0] == begin
    assert found[1].startswith(reason)
    assert bool(found[1]) == (begin is None)


def allowed(written: list[int], first: bool, limit: int = 100) -> set[int]:
    mask = WORDS.constraint(torch.tensor([written], dtype=torch.long).view(1, -1), first, limit)
    return set(mask[0].nonzero()[:, 0].tolist())


def test_the_constraint_step_by_step() -> None:
    plain = set(range(10))
    assert allowed([], True) == {14}
    assert allowed([], False) == plain - {9} | {14}
    assert allowed([3], False) == plain - {9} | {14}, "an answer cannot stop without a mask"
    assert allowed([14], True) == allowed([14, 10], True) == allowed([2, 14, 10, 12], False) == {10, 11, 12, 13}
    assert allowed([14, 10, 12, 11], True) == {15}
    assert allowed([14, 10, 12, 11, 15], True) == plain
    assert allowed([3] * 14, False, limit=20) == {14}, "no more than the mask fits"
    assert allowed([3] * 13, False, limit=20) == plain - {9} | {14}


def test_whatever_is_generated_under_the_constraint_can_be_read() -> None:
    generator = torch.Generator().manual_seed(0)
    for trial in range(50):
        first, limit = trial % 2 == 0, 12 + trial % 7
        written = torch.empty(1, 0, dtype=torch.long)
        while written.shape[1] < limit and 9 not in written[0].tolist():
            logits = torch.randn(1, 16, generator=generator)
            logits = logits.masked_fill(~WORDS.constraint(written, first, limit), -torch.inf)
            written = torch.cat([written, logits.argmax(1)[:, None]], dim=1)
        assert WORDS.read(written[0].tolist())[1] == ""


def test_answers_hold_the_mask_where_it_stands() -> None:
    assert answers.filled("a {mask} b", [3, 0]) == "a <|mt_start|><|mt_3|><|mt_0|><|mt_end|> b"
    assert answers.filled("a", [1]) == "a <|mt_start|><|mt_1|><|mt_end|>"
    text = answers.filled(answers.plain("tampered"), [5, 6, 7])
    parsed = explanations.parse(text, latents=3)
    assert parsed.tokens == (5, 6, 7)
    assert text.endswith("Conclusion: tampered.")


def test_what_an_image_is() -> None:
    mask = torch.zeros(3, 1, 2, 2)
    mask[1] = 1
    mask[2, 0, 0, 0] = 1
    assert answers.kinds(torch.tensor([0, 1, 1]), mask) == ["real", "synthetic", "tampered"]
    assert answers.kinds(torch.tensor([1]), mask[:1]) == ["tampered"], "a label without a mask is not called real"


def test_tokens_are_the_papers() -> None:
    assert answers.tokens(2) == ["<|mt_0|>", "<|mt_1|>", "<|mt_start|>", "<|mt_end|>"]
