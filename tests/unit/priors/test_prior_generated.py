"""Generated images and the tokens they are made of, through shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unforge import priors, shards, tokenizers
from unforge.train import prior as artefacts

COUNTS = {"train": 3, "val": 1, "test": 2}


@pytest.fixture
def made(family: str, prior: Callable[..., Any], tokenizer: Callable[..., Any], tmp_path: Path) -> Path:
    """Folders `codebook` and `prior`, and the shards `set` sampled from them."""
    own = tokenizer(family)
    for part in ("codebook", "prior"):
        (tmp_path / part).mkdir()
    tokenizers.save(own, family, tmp_path / "codebook")
    priors.save(prior(family), family, own, tmp_path / "prior")
    shards.write(tmp_path / "set", generated(tmp_path, family, COUNTS), name="made", data="stand_in", version="1")
    return tmp_path


def generated(folder: Path, family: str, counts: dict[str, int]) -> Any:
    return artefacts.generated(
        family, folder / "codebook", folder / "prior", counts, seed=7, device=torch.device("cpu")
    )


def test_stored_tokens_decode_to_the_stored_png(family: str, made: Path) -> None:
    stored, own = shards.ShardSet(made / "set"), tokenizers.load(made / "codebook")
    assert len(stored) == sum(COUNTS.values())
    for key in stored.keys:
        tokens = torch.from_numpy(stored.tokens(key))
        assert tokens.dtype == (torch.bool if family == "infinity" else torch.int64)
        with torch.no_grad():
            image = own.to_image(own.lookup(tokens[None]))[0]
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert shards.encode_png(pixels) == stored.image_bytes(key)


def test_rows_say_who_made_them(family: str, made: Path) -> None:
    stored = shards.ShardSet(made / "set")
    for key, row in stored.rows.items():
        assert key.startswith(f"{family}-{row['split']}-0000")
        assert (row["origin"], row["kind"], row["label"], row["extension"]) == (family, "generated", 1, "png")
        assert (row["unit"], row["source"]) == (key, [key])
        meta = json.loads(row["meta"])
        assert meta == {"generation_mode": "sampled", "prior": priors.OF[family], "temperature": 1.0}
    assert {s: sum(r["split"] == s for r in stored.rows.values()) for s in COUNTS} == COUNTS


def test_an_image_does_not_depend_on_how_many_are_made(family: str, made: Path) -> None:
    stored = shards.ShardSet(made / "set")
    for sample in generated(made, family, {"test": 1, "val": 1}):
        assert sample.image == stored.image_bytes(sample.key)
