"""A test set at every level of a perturbation: `python stages/perturb.py casia1 jpeg --levels 70,80`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from unforge import paths, perturbations, profiles, seeds, shards
from unforge.types import Sample


def samples(origin: shards.ShardSet, keys: list[str], family: str, level: float, seed: int) -> Iterator[Sample]:
    """The images of `origin` perturbed, their masks as they are; each by its own generator."""
    for key in keys:
        row: dict[str, Any] = origin.row(key)
        rng = seeds.generator(seed, key, f"{family}{level:g}")
        data, extension = perturbations.encode(family, origin.image(key), level, rng)
        yield Sample(
            key=key,
            image=data,
            extension=extension,
            mask=origin.mask_bytes(key),
            label=row["label"],
            kind=row["kind"],
            source=tuple(row["source"]),
            unit=row["unit"],
            split=row["split"],
            meta={**json.loads(row["meta"]), "orientation": 1, "perturbation": {"family": family, "level": level}},
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("testset")
    parser.add_argument("family")
    parser.add_argument("--levels", required=True, help="separated by commas")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        profile = profiles.load(arguments.profile)
        origin = shards.ShardSet(paths.shards(profile.name, arguments.testset))
        limit = profile.scale("perturb", arguments.testset)["images"]
        keys = sorted(
            origin.keys, key=lambda key: (origin.row(key)["label"] == 0, seeds.fraction(profile.seed, key, "perturb"))
        )
        for text in arguments.levels.split(","):
            level = float(text) if "." in text else int(text)
            name = perturbations.name(arguments.testset, arguments.family, level)
            shards.write(
                paths.shards(profile.name, name),
                samples(origin, sorted(keys[:limit]), arguments.family, level, profile.seed), name=name,
                version=f"{origin.version}/{perturbations.load(arguments.family).VERSION}",
                data=origin.data, redistribute=origin.redistribute, inputs={arguments.testset: origin.digest},
                config={"family": arguments.family, "level": level, "images": limit}, seed=profile.seed,
            )  # fmt: skip
    except (ValueError, OSError) as error:
        sys.exit(f"perturb {arguments.testset}: {error}")
