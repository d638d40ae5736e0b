"""The closed-vocabulary tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from unforge.backbones import words

TEXT = "Conclusion: this image is tampered; about 12 percent.\nHigh-Level: <it is>"


def test_text_comes_back_letter_by_letter() -> None:
    tokenizer = words.build([TEXT], ["<img>"])
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.unk_token_id not in ids
    shuffled = "image tampered\n\nis:34567 this;<img> High"
    assert tokenizer.decode(tokenizer(shuffled)["input_ids"]) == shuffled


def test_ids_are_base_then_special_then_sorted_words() -> None:
    tokenizer = words.build(["b a"], ["<x>", "<y>"])
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert names[:6] == ["<pad>", "<unk>", "<s>", "</s>", "<x>", "<y>"]
    assert names[6:] == sorted(names[6:])
    assert {"a", " a", "b", " b", "0", " 9", "\n"} <= set(names[6:])
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 1)


def test_special_tokens_are_one_token_wherever_they_stand() -> None:
    tokenizer = words.build(["word"], ["<|mark|>"])
    assert tokenizer("word<|mark|> word")["input_ids"] == tokenizer.convert_tokens_to_ids(["word", "<|mark|>", " word"])


def test_other_words_are_unknown() -> None:
    tokenizer = words.build(["one two"])
    assert tokenizer("one three")["input_ids"][1] == tokenizer.unk_token_id


@pytest.mark.parametrize("text", ["", " ", "a  b", "\t\n x", "12.5%", "é"])
def test_pieces_make_the_text_again(text: str) -> None:
    assert "".join(words.pieces(text)) == text


def test_save_and_load_with_added_tokens(tmp_path: Path) -> None:
    tokenizer = words.build([TEXT], ["<img>"])
    tokenizer.add_tokens(["<|mt_0|>", "<|mt_1|>"], special_tokens=True)
    words.save(tokenizer, tmp_path / "a")
    words.save(tokenizer, tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    again = words.load(tmp_path / "a")
    text = f"image<|mt_1|>{TEXT}"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again(text)["input_ids"]) == text
    assert len(again) == len(tokenizer)


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        words.load(tmp_path)
