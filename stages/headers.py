"""What headers alone tell: `python stages/headers.py tampertok/sid/headers-full/s0 --testsets sidset_test`."""

from __future__ import annotations

import argparse
import re
import sys

import pyarrow.parquet as pq

from unforge import evaluate, headers, paths, profiles
from unforge.shards import ShardSet


def stage(name: str, testsets: list[str], profile: profiles.Profile) -> None:
    parts = re.fullmatch(r"([a-z0-9_]+)/([a-z0-9_]+)/([a-z0-9_-]+)/s(\d+)", name)
    if parts is None:
        raise ValueError(f"run {name!r}: <paper>/<protocol>/<variant>/s<seed> is expected")
    protocol, seed = parts[2], int(parts[4])
    listed = paths.protocol(profile.name, protocol) / "members.parquet"
    if not listed.is_file():
        raise FileNotFoundError(f"{listed} is not there: `dvc repro` makes it, `dvc pull` fetches it")
    members = pq.read_table(listed).to_pylist()
    sets = {
        dataset: ShardSet(paths.shards(profile.name, dataset)) for dataset in sorted({m["dataset"] for m in members})
    }
    model = headers.fit_members(sets, members)
    about = {"method": "headers", "variant": "", "scale": "", "pretraining": "none", "recipe": "counts"}
    run = evaluate.Run(name=name, sha256=model.digest, seed=seed, about=about)
    inputs = {"members": paths.sha256(listed), **{dataset: one.digest for dataset, one in sets.items()}}
    with paths.writing(paths.scores(profile.name, name)) as target:
        for testset in testsets:
            shard_set = ShardSet(paths.shards(profile.name, testset))
            rows = headers.score_rows(model, shard_set, run=name, seed=seed, run_sha256=run.sha256, testset=testset)
            evaluate.write(target, testset, evaluate.Scored(rows=rows), run, shard_set.data)
            inputs[testset] = shard_set.digest
        evaluate.write_samples(target, [], run)
        meta = paths.meta({"run": name, "testsets": testsets, **about}, seed, inputs)
        paths.write_json(target / "meta.json", meta)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--testsets", required=True, help="names, separated by commas")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        names = [name for name in arguments.testsets.split(",") if name]
        stage(arguments.run, names, profiles.load(arguments.profile))
    except (ValueError, OSError) as error:
        sys.exit(f"headers {arguments.run}: {error}")
