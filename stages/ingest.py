"""One dataset as shards: `python stages/ingest.py casia1`, from the real set once it was added, else its stand-in."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from unforge import datasets, paths, profiles, shards
from unforge.datasets import ingest


def photographs(profile: profiles.Profile) -> None:
    """The pool of photographs that everything else is made from."""
    module = datasets.load("photos")
    target = paths.shards(profile.name, "photos")
    shards.write(target, module.photographs(), name="photos", data="real", version=module.VERSION)


def real(name: str, module: Any, profile: profiles.Profile, limit: int | None) -> None:
    rows: list[dict[str, Any]] = []
    shards.write(
        paths.shards(profile.name, name),
        ingest.samples(paths.raw(name), rows, limit=limit, seed=profile.seed),
        name=name,
        data="real",
        version=module.VERSION,
        redistribute=module.CARD.redistribute,
        rejects=ingest.rejects(rows),
        config={"limit": limit},
        seed=profile.seed,
        inputs={"source": paths.sha256(paths.raw(name) / "SOURCE.json")},
    )


def stand_in(name: str, module: Any, profile: profiles.Profile, images: int, size: int) -> None:
    """Modified crops of freely licensed photographs: they may be shown, unlike the photographs themselves."""
    import torch

    from unforge import backbones, forgeries

    torch.set_num_threads(profile.machine.threads)
    pool = shards.ShardSet(paths.shards(profile.name, "photos"))
    folder = paths.backbone(profile.name, "autoencoder")
    render = backbones.load(folder).render if "regenerated" in module.STAND_IN.kinds else None
    shards.write(
        paths.shards(profile.name, name),
        forgeries.stand_in(module.STAND_IN, pool, images, size, profile.seed, name, render),
        name=name,
        data="stand_in",
        version=f"{module.VERSION}/{forgeries.VERSION}",
        redistribute=True,
        config={"images": images, "size": size},
        seed=profile.seed,
        inputs={"photos": pool.digest, "autoencoder": paths.sha256(folder / "model.safetensors")},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        active, name = profiles.load(arguments.profile), arguments.dataset
        if name == "photos":
            photographs(active)
        else:
            source = paths.read_json(paths.raw(name) / "SOURCE.json")
            module = datasets.load(source.get("module", name))
            scale = active.scale("ingest", name)
            if source["source"] == "real":
                real(name, module, active, scale["images"])
            else:
                stand_in(name, module, active, scale["images"], scale["size"])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"ingest {arguments.dataset}: {error}")
