"""One dataset as shards: `python stages/ingest.py casia1`, from the real set once it was added, else its stand-in."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from unforge import datasets, paths, profiles, shards
from unforge.datasets import ingest


def stage(name: str, profile: profiles.Profile) -> None:
    target = paths.shards(profile.name, name)
    if name == "photos":
        pool = datasets.load(name)
        return shards.write(target, pool.photographs(), name=name, data="real", version=pool.VERSION)
    source = paths.read_json(paths.raw(name) / "SOURCE.json")
    module, scale = datasets.load(source.get("module", name)), profile.scale("ingest", name)
    if source["source"] != "real":
        return stand_in(name, module, profile, scale["images"], scale["size"])
    rows: list[dict[str, Any]] = []
    shards.write(
        target, ingest.samples(paths.raw(name), rows, limit=scale["images"], seed=profile.seed), name=name, data="real",
        version=module.VERSION, redistribute=module.CARD.redistribute, rejects=ingest.rejects(rows), seed=profile.seed,
        config={"limit": scale["images"]}, inputs={"source": paths.sha256(paths.raw(name) / "SOURCE.json")},
    )  # fmt: skip


def stand_in(name: str, module: Any, profile: profiles.Profile, images: int, size: int) -> None:
    """Modified crops of freely licensed photographs: they may be shown, unlike the photographs themselves."""
    import torch

    from unforge import backbones, forgeries

    torch.set_num_threads(profile.machine.threads)
    pool = shards.ShardSet(paths.shards(profile.name, "photos"))
    inputs, render = {"photos": pool.digest}, None
    if "regenerated" in module.STAND_IN.kinds:
        folder = paths.backbone(profile.name, "autoencoder")
        render = backbones.load(folder).render
        inputs["autoencoder"] = paths.sha256(folder / "model.safetensors")
    shards.write(
        paths.shards(profile.name, name),
        forgeries.stand_in(module.STAND_IN, pool, images, size, profile.seed, name, render), name=name,
        data="stand_in", version=f"{module.VERSION}/{forgeries.VERSION}", redistribute=True,
        config={"images": images, "size": size}, seed=profile.seed, inputs=inputs,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        stage(arguments.dataset, profiles.load(arguments.profile))
    except (ValueError, OSError) as error:
        sys.exit(f"ingest {arguments.dataset}: {error}")
