"""Tokenizers as artefacts: trained on views of photographs, made of another family's, or from released weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unforge import paths, seeds, tokenizers
from unforge.profiles import Machine
from unforge.shards import ShardSet
from unforge.tokenizers import base
from unforge.train import checkpoint, log, protocols
from unforge.train.distributed import World
from unforge.train.run import Scale, train


def learn(
    name: str, values: Mapping[str, Any], views: ShardSet, target: Path, *, machine: Machine, seed: int, world: World
) -> None:
    """Train a small tokenizer on the views of split `train` and write it to `target`, with what it does on those of
    `val`: PSNR (dB) and the use of its codes. A family with `MADE_OF` takes the tokenizer beside `target` instead."""
    module = tokenizers.load_module(name)
    training, validation = protocols.pool(views, "train"), protocols.pool(views, "val")
    inputs, rows, state = protocols.inputs(training), [], None
    about: dict[str, Any] = {"tokenizer": name, "scale": dict(values), "members": protocols.describe(training)}
    torch.manual_seed(seeds.integer(seed, name, "start"))
    if hasattr(module, "MADE_OF"):
        folder = target.with_name(module.MADE_OF)
        inputs[str(folder)] = paths.sha256(folder / "model.safetensors")
        tokenizer = module.remapped(tokenizers.load(folder), module.SMALL, pixels(views, "train"))
    else:
        scale = Scale.of({"crop": module.SMALL.image_size, **values}, module.SMALL.recipe, None)
        config = module.SMALL.for_steps(scale.steps)
        tokenizer = module.build(config)
        settings = {**about, "tokenizer": dataclasses.asdict(config)}
        fitted, state = train(
            tokenizer, config.recipe, scale, training, validation, world=world, machine=machine, seed=seed,
            stage=f"codebook/{name}", config=settings, inputs=inputs,
        )  # fmt: skip
        rows = fitted.log
        tokenizer.settle(pixels(views, "train").to(world.device))
    if world.first:
        about["measured"] = dict(base.measure(tokenizer.eval(), pixels(views, "val").to(world.device)))
        _write(tokenizer, name, target, rows, paths.meta(about, seed, inputs))
        checkpoint.remove(state)


def released(name: str, target: Path, *, file: str | None, sha256: str | None, **extras: Any) -> None:
    """Write the tokenizer of released weights: `file` and its hash, and further ones as [file, hash] by their role.

    ValueError, which says what to get, when they are not given.
    """
    wanted = tokenizers.load_module(name).OFFICIAL
    if file is None or sha256 is None or any(given is None for given in extras.values()):
        files = ", ".join([wanted.file, *wanted.extras.values()])
        raise ValueError(f"no released weights: get {files} and give path and SHA-256 in the profile, codebook.{name}")
    more = {role: (Path(given[0]), str(given[1])) for role, given in extras.items()}
    tokenizer = tokenizers.load_official(name, Path(file), sha256, extras=more)
    inputs = {"weights": sha256, **{role: digest for role, (_, digest) in more.items()}}
    _write(tokenizer, name, target, [], paths.meta({"tokenizer": name, "official": True}, 0, inputs))


def pixels(views: ShardSet, split: str) -> torch.Tensor:
    """(N,3,S,S) in [0,1]: the views of a split, sorted by key."""
    (member,) = protocols.pool(views, split)
    images = torch.stack([torch.from_numpy(views.image(key).copy()) for key in member.keys])
    return images.permute(0, 3, 1, 2).float().div_(255)


def _write(tokenizer: Any, name: str, target: Path, rows: list[Any], meta: Mapping[str, Any]) -> None:
    with paths.writing(target) as folder:
        tokenizers.save(tokenizer, name, folder)
        log.write(folder / "log.parquet", rows, {"tokenizer": name, "seed": meta["seed"]})
        paths.write_json(folder / "meta.json", meta)
