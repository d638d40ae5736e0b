"""A tokenizer, trained on views of photographs or from released weights: `python stages/codebook.py var`."""

from __future__ import annotations

import argparse
import sys

from unforge import paths, profiles
from unforge.shards import ShardSet
from unforge.train import codebook, distributed

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        profile, name = profiles.load(arguments.profile), arguments.tokenizer
        values, target = profile.scale("codebook", name), paths.codebook(profile.name, name)
        if "file" in values:
            codebook.released(name, target, **values)
        else:
            distributed.launch(profile.machine)
            views = ShardSet(paths.shards(profile.name, "views"))
            with distributed.world(profile.machine) as world:
                codebook.learn(name, values, views, target, machine=profile.machine, seed=profile.seed, world=world)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"codebook {arguments.tokenizer}: {error}")
