"""Priors as artefacts, and the images they generate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from unforge import paths, priors, seeds, shards, tokenizers
from unforge.priors import base
from unforge.profiles import Machine
from unforge.shards import ShardSet
from unforge.train import checkpoint, log
from unforge.train.distributed import World
from unforge.train.loop import fit
from unforge.types import Sample

BATCH = 64


def learn(
    name: str, values: Mapping[str, Any], scale: Literal["small", "paper"], codebook: Path, views: ShardSet,
    target: Path, *, machine: Machine, seed: int, world: World,
) -> None:  # fmt: skip
    """Train the prior over the tokens of `codebook` on views of split `train` and write it to `target`.

    `values`: steps, batch, validate_every, checkpoint_every. Views of split `val` choose the step; `meta.json` says
    how many bits a token of theirs takes (of a diffusion: at most), beside those under the tokens' frequencies.
    """
    tokenizer = tokenizers.load(codebook).to(world.device)
    images = {split: [views.image(key) for key in keys(views, split)] for split in ("train", "val")}
    inputs = {"codebook": paths.sha256(codebook / "model.safetensors"), "views": views.digest}
    about: dict[str, Any] = {"family": name, "kind": priors.OF[name], "scale": dict(values)}
    torch.manual_seed(seeds.integer(seed, name, "prior"))
    module = priors.load_module(priors.OF[name])
    config = priors.config(name, scale).for_steps(values["steps"])
    model = module.build(config, tokenizer).to(world.device)
    settings = {**about, "config": dataclasses.asdict(config), "machine": dataclasses.asdict(machine), "seed": seed}
    state = checkpoint.folder(f"prior/{name}", {**settings, "world": world.size}, inputs)
    tokens = base.token_maps(tokenizer, images["val"])
    held = base.Held(tokens)
    fitted = fit(
        model, base.TokenMaps(tokenizer, images["train"], seed), held, config.recipe, world=world,
        steps=values["steps"], batch=values["batch"], seed=seed, validate_every=values["validate_every"],
        checkpoint_every=values["checkpoint_every"], resume=state, workers=machine.workers, name=f"prior/{name}",
    )  # fmt: skip
    scales = getattr(tokenizer.quantizer, "scales", ())
    with torch.no_grad():
        about["bits"] = -held(model.eval(), world)[1]
    seen = base.token_maps(tokenizer, images["train"])
    about["bits_of_frequencies"] = base.unigram_bits(seen, tokens, tokenizer.quantizer.codes, scales)
    about["chosen_step"] = fitted.step
    if world.first:
        with paths.writing(target) as folder:
            priors.save(model, name, tokenizer, folder)
            log.write(folder / "log.parquet", fitted.log, {"prior": name, "seed": seed})
            paths.write_json(folder / "meta.json", paths.meta(about, seed, inputs))
        checkpoint.remove(state)


def keys(views: ShardSet, split: str) -> list[str]:
    """Keys of a split, sorted."""
    return sorted(key for key, row in views.rows.items() if row["split"] == split)


def generated(
    name: str, codebook: Path, prior: Path, counts: Mapping[str, int], *, seed: int, device: torch.device
) -> Iterator[Sample]:
    """As many images of each split as `counts` says, sampled from the prior: PNGs with the tokens they are made of.

    An image depends on (seed, key) and the weights only.
    """
    tokenizer = tokenizers.load(codebook).to(device)
    model = priors.load(prior, tokenizer).to(device)
    meta = {"generation_mode": "sampled", "prior": priors.OF[name], "temperature": 1.0}
    listed = [(f"{name}-{split}-{i:05d}", split) for split, count in counts.items() for i in range(count)]
    for first in range(0, len(listed), BATCH):
        part = listed[first : first + BATCH]
        tokens = model.sample([key for key, _ in part], seed)
        for (key, split), own, pixels in zip(part, tokens.cpu(), rendered(tokenizer, tokens), strict=True):
            yield Sample(
                key=key, image=shards.encode_png(pixels), extension="png", mask=None, label=1, kind="generated",
                source=(key,), unit=key, split=split, meta=meta, origin=name, tokens=shards.encode_npy(own.numpy()),
            )  # fmt: skip


@torch.no_grad()
def rendered(tokenizer: Any, tokens: torch.Tensor) -> list[np.ndarray]:
    """(S,S,3) uint8 of each token map, decoded one by one: a pixel must not depend on what is decoded beside it."""
    images = [tokenizer.to_image(tokenizer.lookup(one[None]))[0] for one in tokens]
    return [image.mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy() for image in images]
