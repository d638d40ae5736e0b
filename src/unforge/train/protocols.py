"""The members of a training protocol, as sets of shards with keys and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from unforge import datasets, paths
from unforge.shards import ShardSet
from unforge.train.data import Member


def members(profile: str, protocol: str, split: str) -> list[Member]:
    """Members of `protocol` (a module of `unforge.datasets` with MEMBERS) with the images of `split` that
    `members.parquet` gives them, sorted.

    The weight of a part that has no image here (a small stand-in) goes to the other parts of its dataset.
    Raises FileNotFoundError or ValueError when something is not there.
    """
    weights = datasets.load(protocol).MEMBERS
    path = paths.protocol(profile, protocol) / "members.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: `dvc repro` makes it, `dvc pull` fetches it")
    listed: dict[str, list[str]] = {}
    for row in pq.read_table(path).to_pylist():
        if row["split"] == split:
            listed.setdefault(row["member"], []).append(row["key"])
    found: list[Member] = []
    for dataset in sorted({name.partition("/")[0] for name in weights}):
        shard_set = ShardSet(paths.shards(profile, dataset))
        own = {name: weight for name, weight in weights.items() if name.partition("/")[0] == dataset}
        present = {name: weight for name, weight in own.items() if name in listed}
        if not present:
            raise ValueError(f"{path} lists no image of {dataset} with split {split!r}")
        share = sum(own.values()) / sum(present.values())
        for name, weight in sorted(present.items()):
            found.append(Member(shards=shard_set, keys=sorted(listed[name]), weight=share * weight))
    return found


def pool(shard_set: ShardSet, split: str) -> list[Member]:
    """One member: the images of `shard_set` with this split, sorted."""
    keys = sorted(key for key, row in shard_set.rows.items() if row["split"] == split)
    return [Member(shards=shard_set, keys=keys, weight=1.0)]


def inputs(*members: Sequence[Member]) -> dict[str, str]:
    """Hash of every set by its path."""
    return {str(member.shards.path): member.shards.digest for group in members for member in group}


def describe(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Set, number of images and weight of every member, for `meta.json`."""
    return [
        {"set": m.shards.name, "images": len(m.keys), "weight": m.weight, "keys": paths.digest(m.keys)} for m in members
    ]
