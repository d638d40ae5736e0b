"""One dataset as shards: `python stages/ingest.py casia1`, from the real set once it was added, else its stand-in."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from unforge import datasets, forgeries, paths, profiles, shards, types
from unforge.datasets import ingest, photos
from unforge.forgeries.steps import clips, tiles, views
from unforge.videos import Clips, reading


def stage(name: str, profile: profiles.Profile) -> None:
    target = paths.shards(profile.name, name)
    if name == "photos":
        return shards.write(target, photos.photographs(), name=name, data="real", version=photos.VERSION)
    raw = paths.raw(name) / "SOURCE.json"
    source = {"source": "stand_in"} if name in ("pretraining", "views") else paths.read_json(raw)
    module, scale = datasets.load(source.get("module", name)), profile.scale("ingest", name)
    if source["source"] != "real":
        return stand_in(name, module, profile, scale)
    rows, how = list[dict[str, Any]](), reading.options(scale)
    shards.write(
        target, (reading if "frames" in how else ingest).samples(paths.raw(name), rows, seed=profile.seed, **how),
        name=name, data="real", version=module.VERSION, redistribute=module.CARD.redistribute, seed=profile.seed,
        config=how, rejects=ingest.rejects(rows), inputs={"source": paths.sha256(raw)},
    )  # fmt: skip


def stand_in(name: str, module: Any, profile: profiles.Profile, scale: dict[str, Any]) -> None:
    """Modified crops of freely licensed photographs: they may be shown, unlike the photographs themselves."""
    pool, recipe = shards.ShardSet(paths.shards(profile.name, "photos")), module.STAND_IN
    made, inputs = (pool, scale["images"], scale["size"], profile.seed, name), {"photos": pool.digest}
    if isinstance(recipe, types.Views):
        samples, version = views.views(recipe, *made), views.VERSION
    elif isinstance(recipe, Clips):
        samples, version = clips.clips(recipe, *made, scale["frames"], scale["policy"]), clips.VERSION
    else:
        samples, version = forgeries.stand_in(recipe, *made, *maker(module, profile, inputs)), forgeries.VERSION
    shards.write(
        paths.shards(profile.name, name), samples, name=name, data="stand_in", version=f"{module.VERSION}/{version}",
        redistribute=True, config=scale, seed=profile.seed, inputs=inputs,
    )  # fmt: skip


def maker(module: Any, profile: profiles.Profile, inputs: dict[str, str]) -> tuple[Any, shards.ShardSet | None]:
    """What re-renders regions and what generated images begin with, where a stand-in needs it; hashes: `inputs`."""
    if "regenerated" not in module.STAND_IN.kinds:
        return None, None
    import torch

    from unforge import backbones, tokenizers

    torch.set_num_threads(profile.machine.threads)
    if not (model := getattr(module, "GENERATOR", "")):
        folder = paths.backbone(profile.name, "autoencoder")
        inputs["autoencoder"] = paths.sha256(folder / "model.safetensors")
        return backbones.load(folder).render, None
    folder = paths.codebook(profile.name, model)
    sampled = shards.ShardSet(paths.shards(profile.name, paths.generated(model)))
    inputs |= {"codebook": paths.sha256(folder / "model.safetensors"), "generated": sampled.digest}
    return tiles.renderer(tokenizers.load(folder)), sampled


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        stage(arguments.dataset, profiles.load(arguments.profile))
    except (ValueError, OSError) as error:
        sys.exit(f"ingest {arguments.dataset}: {error}")
