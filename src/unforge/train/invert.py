"""Inverse decoders as artefacts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unforge import paths, seeds, tokenizers
from unforge.profiles import Machine
from unforge.provenance import config, inverse
from unforge.shards import ShardSet
from unforge.train import checkpoint, log
from unforge.train.distributed import World
from unforge.train.loop import fit


def learn(
    name: str, augmented: bool, values: Mapping[str, Any], codebook: Path, generated: ShardSet, target: Path,
    *, machine: Machine, seed: int, world: World,
) -> None:  # fmt: skip
    """Train the inverse decoder of the tokenizer in `codebook` on images of split `train` and write it to `target`.

    `values`: steps, batch and lr (null: the family's recipe), validate_every, checkpoint_every. `meta.json` says how
    far from f_Z the encoder was before and after, on images of split `val`, which also choose the step.
    """
    recipe = config.recipe(tokenizers.load_module(name).RECIPE)
    if values["lr"] is not None:  # a small network that has few steps needs larger ones
        recipe = dataclasses.replace(recipe, lr=values["lr"], min_lr=values["lr"] / 20)
    images, tokens = pairs(generated, "train")
    batch = values["batch"] or recipe.batch
    steps = values["steps"] or recipe.epochs * (len(images) // batch)
    inputs = {"codebook": paths.sha256(codebook / "model.safetensors"), "generated": generated.digest}
    about: dict[str, Any] = {"model": name, "augmented": augmented, "scale": dict(values), "images": len(images)}
    torch.manual_seed(seeds.integer(seed, target.name, "start"))
    model = inverse.InverseDecoder(tokenizers.load(codebook)).to(world.device)
    settings = {**about, "recipe": dataclasses.asdict(recipe), "machine": dataclasses.asdict(machine), "seed": seed}
    state = checkpoint.folder(f"inverse/{target.name}", {**settings, "world": world.size}, inputs)
    held = inverse.Held(*pairs(generated, "val"))
    with torch.no_grad():
        before = -held(model.eval(), world)[1]
    fitted = fit(
        model, inverse.Generated(images, tokens, seed=seed, steps=steps, augmented=augmented), held, recipe,
        world=world, steps=steps, batch=batch, seed=seed, validate_every=values["validate_every"],
        checkpoint_every=values["checkpoint_every"], resume=state, workers=machine.workers,
        name=f"inverse/{target.name}",
    )  # fmt: skip
    with torch.no_grad():
        about |= {"before": before, "after": -held(model.eval(), world)[1], "chosen_step": fitted.step}
    if world.first:
        with paths.writing(target) as folder:
            inverse.save(model, folder)
            log.write(folder / "log.parquet", fitted.log, {"model": target.name, "seed": seed})
            paths.write_json(folder / "meta.json", paths.meta(about, seed, inputs))
        checkpoint.remove(state)


def pairs(generated: ShardSet, split: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images and tokens of a split, sorted by key, where the tokens are known. ValueError when there are none."""
    rows = [row for row in generated.rows.values() if row["split"] == split and row["tokens_size"] is not None]
    keys = sorted(row["key"] for row in rows)
    if not keys:
        raise ValueError(f"{generated.path} has no image of split {split!r} with its tokens: nothing to learn from")
    return [generated.image(key) for key in keys], [generated.tokens(key) for key in keys]
