"""Train one run: `python stages/train.py sparsevit/catnet/full/s0`, also under torchrun."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from unforge import datasets, methods, paths, profiles, seeds
from unforge.train import checkpoint, distributed, log, protocols
from unforge.train.run import Name, Scale, contents, pretraining, train


def stage(run: str, method: str, given: Mapping[str, Path], profile: profiles.Profile) -> None:
    name = Name.parse(run)
    method = method or name.method
    config, seed = methods.config(method, name.variant, profile.model), profile.seed + name.seed
    scale = Scale.of(profile.scale("train", method), config.recipe, getattr(config, "input_size", None))
    about: dict[str, Any] = {"run": run, "pretraining": scale.backbone or "none", "scale": dataclasses.asdict(scale)}
    assets, rows, state = dict(given), [], None
    if scale.backbone:
        assets["backbone"] = paths.backbone(profile.name, scale.backbone) / "model.safetensors"
    inputs = {str(path): contents(path) for path in assets.values()}
    if given:
        about["pretraining"] = pretraining(given)
    with distributed.world(profile.machine) as world:
        torch.manual_seed(seeds.integer(seed, method, "start"))
        model = methods.build(method, config, assets)
        if "run" in assets:
            model.load_state_dict(load_file(assets["run"] / "model.safetensors"))
        elif name.protocol:
            training = protocols.members(profile.name, name.protocol, "train")
            validation = protocols.members(profile.name, name.protocol, datasets.load(name.protocol).VALIDATION)
            inputs |= protocols.inputs(training, validation)
            about |= {"members": protocols.describe(training), "validation": protocols.describe(validation)}
            fitted, state = train(
                model, config.recipe, scale, training, validation, world=world, machine=profile.machine, seed=seed,
                stage=f"train/{run}", config={**about, "method": dataclasses.asdict(config)}, inputs=inputs,
            )  # fmt: skip
            rows, about["chosen_step"] = fitted.log, fitted.step
        elif any(p.requires_grad for p in model.parameters()):
            raise ValueError(f"{method} learns: name a protocol, as in {method}/catnet/full/s0")
        if world.first:
            with paths.writing(paths.run(profile.name, run)) as folder:
                methods.save(model, method, name.variant, config, folder)
                log.write(folder / "log.parquet", rows, {"run": run, "seed": seed})
                paths.write_json(folder / "meta.json", paths.meta(about, seed, inputs))
            checkpoint.remove(state)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="<paper>/<protocol>/[<method>-]<variant>/s<seed>, or <method>/<variant>")
    parser.add_argument("--method", default="", help="default: the one the run names, or its first part")
    parser.add_argument("--asset", action="append", default=[], metavar="ROLE=PATH", help="what the method builds on")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        distributed.launch(profiles.load(arguments.profile).machine)
        given = {role: Path(path) for role, _, path in (asset.partition("=") for asset in arguments.asset)}
        stage(arguments.run, arguments.method, given, profiles.load(arguments.profile))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"train {arguments.run}: {error}")
