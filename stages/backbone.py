"""Pretrain a backbone on the photographs of the pool: `python stages/backbone.py autoencoder`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

import torch

from unforge import backbones, paths, profiles, seeds
from unforge.shards import ShardSet
from unforge.train import checkpoint, distributed, log, protocols
from unforge.train.run import Scale, train


def stage(name: str, profile: profiles.Profile) -> None:
    module = backbones.load_module(name)
    config = module.SMALL if profile.model == "small" else module.Config()
    scale = Scale.of(profile.scale("backbone", name), config.recipe, None)
    photos = ShardSet(paths.shards(profile.name, "photos"))
    training, validation = protocols.pool(photos, "pretrain"), protocols.pool(photos, "val")
    inputs = protocols.inputs(training)
    about: dict[str, Any] = {
        "backbone": name,
        "scale": dataclasses.asdict(scale),
        "members": protocols.describe(training),
    }
    with distributed.world(profile.machine) as world:
        torch.manual_seed(seeds.integer(profile.seed, name, "start"))
        model = module.build(config, {})
        fitted, state = train(
            model, config.recipe, scale, training, validation, world=world, machine=profile.machine, seed=profile.seed,
            stage=f"backbone/{name}", config={**about, "backbone": dataclasses.asdict(config)}, inputs=inputs,
        )  # fmt: skip
        if world.first:
            about["chosen_step"] = fitted.step
            with paths.writing(paths.backbone(profile.name, name)) as folder:
                backbones.save(model, name, config, folder)
                log.write(folder / "log.parquet", fitted.log, {"backbone": name, "seed": profile.seed})
                paths.write_json(folder / "meta.json", paths.meta(about, profile.seed, inputs))
            checkpoint.remove(state)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        distributed.launch(profiles.load(arguments.profile).machine)
        stage(arguments.backbone, profiles.load(arguments.profile))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"backbone {arguments.backbone}: {error}")
