"""Pretrain a backbone, or take it from released weights: `python stages/backbone.py autoencoder`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from unforge import backbones, paths, profiles, seeds
from unforge.shards import ShardSet
from unforge.train import checkpoint, distributed, log, protocols
from unforge.train.run import Scale, contents, train


def stage(name: str, profile: profiles.Profile) -> None:
    module = backbones.load_module(name)
    config = module.SMALL if profile.model == "small" else module.Config()
    values = profile.scale("backbone", name)
    if "directory" in values:
        released(name, module, config, values["directory"], profile)
        return
    scale = Scale.of(values, config.recipe, None)
    images = ShardSet(paths.shards(profile.name, getattr(module, "TRAINED_ON", "photos")))
    training, validation = protocols.pool(images, "pretrain"), protocols.pool(images, "val")
    assets = {needed: paths.backbone(profile.name, needed) for needed in getattr(module, "NEEDS", ())}
    inputs = protocols.inputs(training) | {str(path): contents(path) for path in assets.values()}
    about: dict[str, Any] = {
        "backbone": name,
        "scale": dataclasses.asdict(scale),
        "members": protocols.describe(training),
    }
    with distributed.world(profile.machine) as world:
        torch.manual_seed(seeds.integer(profile.seed, name, "start"))
        model = module.build(config, assets)
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


def released(name: str, module: ModuleType, config: Any, directory: str | None, profile: profiles.Profile) -> None:
    if directory is None:
        raise ValueError(f"no released weights: give their folder as backbone.{name}.directory in the profile")
    inputs = {directory: contents(Path(directory))}
    with paths.writing(paths.backbone(profile.name, name)) as folder:
        backbones.save(module.build(config, {"checkpoint": Path(directory)}), name, config, folder)
        paths.write_json(folder / "meta.json", paths.meta({"backbone": name, "released": True}, profile.seed, inputs))


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
