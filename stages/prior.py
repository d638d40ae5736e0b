"""The generator over a tokenizer's tokens, trained on views of photographs: `python stages/prior.py var`."""

from __future__ import annotations

import argparse
import sys

from unforge import paths, profiles
from unforge.shards import ShardSet
from unforge.train import distributed, prior

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        profile, name = profiles.load(arguments.profile), arguments.family
        distributed.launch(profile.machine)
        with distributed.world(profile.machine) as world:
            prior.learn(
                name, profile.scale("prior", name), profile.model, paths.codebook(profile.name, name),
                ShardSet(paths.shards(profile.name, "views")), paths.prior(profile.name, name),
                machine=profile.machine, seed=profile.seed, world=world,
            )  # fmt: skip
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"prior {arguments.family}: {error}")
