"""How far the rates of provenance move with the seed of the inverse decoder alone, at the small scale.

    python benchmarks/inverse_seeds.py [--models rar taming] [--seeds 3]

Needs the small profile's codebooks and generated images (`dvc repro papers/iar_provenance/dvc.yaml:table_main`). The
tables' claims take their `seed_sd` from here.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from unforge import paths, profiles, tokenizers
from unforge.provenance import inverse, score
from unforge.shards import ShardSet
from unforge.train import distributed, invert

SIGNALS = ("quant_loss", "enc_loss_calibrated", "combined")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=["rar", "taming"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    profile = profiles.load("small")
    device = distributed.prepare(profile.machine)
    world = distributed.World(device=device)
    photographs = ShardSet(paths.shards(profile.name, "imagenet"))
    for name in options.models:
        generated = ShardSet(paths.shards(profile.name, paths.generated(name)))
        codebook = paths.codebook(profile.name, name)
        tokenizer = tokenizers.load(codebook)
        sides = [score.read(part, "test", tokenizer.image_size, 200, 0) for part in (generated, photographs)]
        rates: dict[str, list[float]] = {signal: [] for signal in SIGNALS}
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                target = Path(folder) / name
                invert.learn(
                    name, False, profile.scale("inverse", name), codebook, generated, target,
                    machine=profile.machine, seed=seed, world=world,
                )  # fmt: skip
                decoder = inverse.load(tokenizer, target)
            own, others = (score.measured(tokenizer, decoder, s.pixels, SIGNALS, device=device) for s in sides)
            for signal in SIGNALS:
                threshold = sorted(row[signal] for row in others)[len(others) // 100]  # as published: 1 % of them below
                rates[signal].append(float(np.mean([row[signal] < threshold for row in own])))
        for signal, values in rates.items():
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            print(json.dumps({"model": name, "signal": signal, "tpr": values, "sd": spread}), flush=True)


if __name__ == "__main__":
    main()
