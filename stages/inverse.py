"""The inverse decoder of a model that generates images: `python stages/inverse.py rar --augmented`."""

from __future__ import annotations

import argparse
import sys

from unforge import paths, profiles
from unforge.provenance import config
from unforge.shards import ShardSet
from unforge.train import distributed, invert

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--augmented", action="store_true")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        profile, name = profiles.load(arguments.profile), arguments.model
        label = config.label(name, "augmented" if arguments.augmented else "inverse")
        generated = ShardSet(paths.shards(profile.name, paths.generated(name)))
        distributed.launch(profile.machine)
        with distributed.world(profile.machine) as world:
            invert.learn(
                name, arguments.augmented, profile.scale("inverse", label), paths.codebook(profile.name, name),
                generated, paths.inverse(profile.name, label), machine=profile.machine, seed=profile.seed, world=world,
            )  # fmt: skip
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"inverse {arguments.model}: {error}")
