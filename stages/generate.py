"""Images of a generator with their tokens, sampled or supplied by the user: `python stages/generate.py var`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from unforge import paths, profiles, shards
from unforge.datasets import generated, ingest
from unforge.train import distributed, prior


def sampled(name: str, profile: profiles.Profile) -> None:
    folders = {"codebook": paths.codebook(profile.name, name), "prior": paths.prior(profile.name, name)}
    counts, device = profile.scale("generate", name), distributed.prepare(profile.machine)
    inputs = {role: paths.sha256(folder / "model.safetensors") for role, folder in folders.items()}
    shards.write(
        paths.shards(profile.name, paths.generated(name)),
        prior.generated(name, folders["codebook"], folders["prior"], counts, seed=profile.seed, device=device),
        name=paths.generated(name), data="stand_in", version="1", redistribute=True, config=counts, seed=profile.seed,
        inputs=inputs,
    )  # fmt: skip


def supplied(name: str, profile: profiles.Profile) -> None:
    raw, rows = paths.raw(paths.generated(name)), list[dict[str, Any]]()
    shards.write(
        paths.shards(profile.name, paths.generated(name)), generated.samples(raw, rows, profile.seed),
        name=paths.generated(name), data="real", version=generated.VERSION, redistribute=generated.CARD.redistribute,
        rejects=ingest.rejects(rows), seed=profile.seed, inputs={"source": paths.sha256(raw / "SOURCE.json")},
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        profile = profiles.load(arguments.profile)
        (sampled if profile.stand_ins else supplied)(arguments.family, profile)
    except (ValueError, OSError) as error:
        sys.exit(f"generate {arguments.family}: {error}")
