"""The codebook of masks, from shapes and the masks of training sets: `python stages/mask_codebook.py masks`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unforge import paths, profiles
from unforge.shards import ShardSet
from unforge.train import distributed, masks

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("codebook")
    parser.add_argument("--sets", required=True, help="names, separated by commas")
    parser.add_argument("--polygons", type=Path, help="COCO as `unforge data add` put it there: objects to pretrain on")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        profile, name = profiles.load(arguments.profile), arguments.codebook
        values, target = profile.scale("codebook", name), paths.codebook(profile.name, name)
        sets = [ShardSet(paths.shards(profile.name, dataset)) for dataset in arguments.sets.split(",")]
        distributed.launch(profile.machine)
        with distributed.world(profile.machine) as world:
            masks.learn(
                name, values, sets, target, machine=profile.machine, seed=profile.seed, world=world,
                scale=profile.model, polygons=arguments.polygons,
            )  # fmt: skip
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"codebook {arguments.codebook}: {error}")
