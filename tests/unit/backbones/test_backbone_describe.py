"""What is said of a mask."""

from __future__ import annotations

import torch

from unforge.backbones import describe, words


def test_an_answer_by_hand() -> None:
    mask = torch.zeros(1, 80, 80)
    mask[:, 20:40, 30:70] = 1  # rows 2-3, columns 3-6 of cells of 10 pixels; 800 of 6,400 pixels
    talk = dict(describe.conversation(mask))
    assert talk[describe.PRESENT] == "Yes, medium, about 12 percent."
    assert talk[describe.WHERE] == "rows 2 to 3, columns 3 to 6."
    assert talk[describe.SHAPE] == "rows 00440000, columns 00022220."


def test_nothing_and_everything() -> None:
    assert describe.conversation(torch.zeros(1, 20, 30)) == [(describe.PRESENT, "No.")]
    whole = dict(describe.conversation(torch.ones(1, 20, 30)))
    assert whole[describe.PRESENT] == "Yes, large, about 100 percent."
    assert whole[describe.WHERE] == "rows 0 to 7, columns 0 to 7."
    assert whole[describe.SHAPE] == "rows 88888888, columns 88888888."
    speck = torch.zeros(1, 80, 80)
    speck[0, 79, 0] = 1
    assert dict(describe.conversation(speck))[describe.WHERE] == "rows 7 to 7, columns 0 to 0."


def test_every_word_is_in_the_vocabulary() -> None:
    tokenizer = words.build(describe.texts())
    torch.manual_seed(0)
    for mask in [*describe.regions(20, 32), torch.ones(1, 16, 16), torch.zeros(1, 16, 16)]:
        for turn in describe.conversation(mask):
            for text in turn:
                assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


def test_regions_are_binary_drawn_and_repeatable() -> None:
    torch.manual_seed(3)
    first = describe.regions(32, 24)
    torch.manual_seed(3)
    assert torch.equal(first, describe.regions(32, 24))
    assert first.shape == (32, 1, 24, 24)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    shares = first.mean((1, 2, 3))
    assert shares.min() < 0.06
    assert 0.15 < shares.max() < 0.9
