"""Where runs look in a few frames: `python stages/attention.py qtfp --testsets cdf_v2 --runs qtfp/ffpp/full/s0`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from unforge import evaluate, methods, paths, profiles, seeds
from unforge.shards import ShardSet
from unforge.train import distributed

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("testset", "key", "data", "run", "extra")]
    + [("label", pa.int64()), ("redistribute", pa.bool_()), ("image", pa.binary()), ("side", pa.int64())]
    + [("weights", pa.list_(pa.float32()))]
)
"""A row for each frame (`run` and `extra` empty): the original file, null where it may not be passed on. And one for
each map of a run: shares of attention over `side` rows of patches, row by row."""


def chosen(shard_set: ShardSet, count: int) -> list[str]:
    """Keys of `count` real and `count` fake frames, each of another video, by a hash of the key."""
    keys = sorted(shard_set.rows, key=lambda key: (seeds.integer(0, key, "figure"), key))
    first: dict[tuple[int, str], str] = {}
    for key in keys:
        first.setdefault((shard_set.row(key)["label"], shard_set.row(key)["unit"]), key)
    return [key for wanted in (0, 1) for key in [key for (label, _), key in first.items() if label == wanted][:count]]


def stage(paper: str, testsets: list[str], runs: list[str], count: int, profile: profiles.Profile) -> None:
    device, rows, inputs = distributed.prepare(profile.machine), list[dict[str, Any]](), dict[str, str]()
    sets = {name: ShardSet(paths.shards(profile.name, name)) for name in testsets}
    frames = [(name, key) for name in testsets for key in chosen(sets[name], count)]
    about: dict[tuple[str, str], dict[str, Any]] = {}
    for name, key in frames:
        held, inputs[name] = sets[name], sets[name].digest
        shown = {"testset": name, "key": key, **{part: held.row(key)[part] for part in ("label", "data")}}
        about[name, key] = shown | {"redistribute": held.redistribute}
        image = held.image_bytes(key) if held.redistribute else None
        rows.append({**about[name, key], "run": "", "extra": "", "image": image})
    for run in runs:
        folder = paths.run(profile.name, run)
        inputs[run], method = evaluate.read_run(folder, run).sha256, methods.load(folder).to(device)
        for name, key in frames:
            with torch.inference_mode():
                extras = method.predict(evaluate.to_tensor(sets[name].image(key), device), extras=True).extras
            for extra in sorted(extras):
                seen = extras[extra][0, 0, 0].float().cpu()
                found = {"run": run, "extra": extra, "side": len(seen)}
                rows.append({**about[name, key], **found, "weights": seen.flatten().tolist()})
    meta = paths.meta({"paper": paper, "runs": runs, "testsets": testsets, "frames": count}, profile.seed, inputs)
    schema = SCHEMA.with_metadata({"unforge": json.dumps(meta, sort_keys=True)})
    with paths.writing_file(Path("data/attention") / profile.name / f"{paper}.parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paper")
    for name in ("--testsets", "--runs"):
        parser.add_argument(name, required=True, help="names, separated by commas")
    parser.add_argument("--frames", type=int, default=5, help="real ones of each set, and as many fake ones")
    parser.add_argument("--profile", help="default: that of params.yaml")
    given = parser.parse_args()
    try:
        stage(given.paper, given.testsets.split(","), given.runs.split(","), given.frames, profiles.load(given.profile))
    except (ValueError, OSError) as error:
        sys.exit(f"attention {given.paper}: {error}")
