"""A tokenizer for the small language models: whole words of a closed vocabulary, built from the texts themselves.

Decoding gives the text back, letter by letter: a token holds the space before its word. Not a backbone to train:
what `build` makes here is a tokenizer, and it is saved with the model that uses it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<s>", "</s>"
BASE = (PAD, UNKNOWN, START, END)
"""Special tokens of every vocabulary, ids 0 to 3."""

PIECE = r" ?[A-Za-z]+| ?[0-9]| ?[^A-Za-z0-9\s]|\s"
"""What a token is: letters, one digit or one other sign, each with at most one space before it, or one white space."""


def pieces(text: str) -> list[str]:
    """`text` cut into tokens; joined, they are the text again."""
    return re.findall(PIECE, text)


def vocabulary(texts: Iterable[str]) -> list[str]:
    """Sorted tokens of `texts`, each with and without a space before it, digits and line ends always among them."""
    found = {piece.strip() or piece for text in texts for piece in pieces(text)} | set("0123456789\n ")
    return sorted(found | {f" {piece}" for piece in found if not piece.isspace()})


def build(texts: Iterable[str], special: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer that knows every word of `texts`; anything else becomes `<unk>`.

    Ids: `BASE`, then `special` in its order, then the words, sorted. Nothing is added in encoding (no start, no end).
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = list(dict.fromkeys([*BASE, *special]))
    known = {token: i for i, token in enumerate(itertools.chain(marks, vocabulary(texts)))}
    tokenizer: Any = Tokenizer(models.WordLevel(known, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def save(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write the tokenizer's files (`tokenizer.json`, `tokenizer_config.json`) into `directory`, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(directory))


def load(directory: Path) -> Any:
    """The tokenizer in `directory`: one of ours, or that of an official checkpoint. Nothing is downloaded.

    FileNotFoundError if there is none.
    """
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((directory / name).is_file() for name in names):
        raise FileNotFoundError(f"no tokenizer in {directory}: expected one of {', '.join(names)}")
    return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
