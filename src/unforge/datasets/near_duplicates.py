"""Near-duplicates between training and test sets, and the members of a training protocol without them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unforge import seeds

if TYPE_CHECKING:
    from unforge.shards import ShardSet

DISTANCE = 4
"""Largest Hamming distance of two 64-bit perceptual hashes that counts as the same picture."""
BITS = 64
FEWEST_BITS = 16
"""A perceptual hash sets about half its bits (they are above the median); far fewer or more are set only
when the picture is flat and the hash says nothing."""
CHUNK = 2**22

LEAKS = pa.schema(
    [
        ("dataset", pa.string()),
        ("key", pa.string()),
        ("testset", pa.string()),
        ("test_key", pa.string()),
        ("distance", pa.int32()),
        ("reason", pa.string()),
    ]
)
MEMBERS = pa.schema([("dataset", pa.string()), ("member", pa.string()), ("key", pa.string()), ("split", pa.string())])


def pairs(left: np.ndarray, right: np.ndarray, distance: int = DISTANCE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(index in `left`, index in `right`, Hamming distance) of all pairs of int64 hashes at most `distance` apart.

    Exact: two such hashes agree in at least one of `distance` + 1 bands of bits, so only those with a
    common band are compared. Sorted by the indices. ValueError unless 0 <= distance < 32.
    """
    if not 0 <= distance < BITS // 2:
        raise ValueError(f"distance {distance}: accepted are 0 to {BITS // 2 - 1}")
    first, second = (np.asarray(hashes, dtype=np.int64).view(np.uint64) for hashes in (left, right))
    edges = np.linspace(0, BITS, distance + 2).astype(int)
    found: list[np.ndarray] = []
    for low, high in pairwise(edges):
        for i, j in _same_band(first, second, int(low), int(high)):
            near = np.bitwise_count(first[i] ^ second[j]) <= distance
            found.append(np.stack([i[near], j[near]], axis=1))
    both = np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), dtype=np.int64)
    i, j = both[:, 0], both[:, 1]
    return i, j, np.bitwise_count(first[i] ^ second[j]).astype(np.int32)


def _same_band(first: np.ndarray, second: np.ndarray, low: int, high: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs whose bits `low` to `high` agree, in chunks of about `CHUNK` pairs."""
    mask = np.uint64(2 ** (high - low) - 1)
    left, right = ((hashes >> np.uint64(low)) & mask for hashes in (first, second))
    order = np.argsort(right, kind="stable")
    begin = np.searchsorted(right[order], left, side="left")
    count = np.searchsorted(right[order], left, side="right") - begin
    position, end = 0, np.cumsum(count)
    while position < len(left):
        base = end[position - 1] if position else 0
        stop = max(position + 1, int(np.searchsorted(end, base + CHUNK, side="right")))
        counts = count[position:stop]
        i = np.repeat(np.arange(position, stop), counts)
        offset = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield i, order[np.repeat(begin[position:stop], counts) + offset]
        position = stop


def comparable(hashes: np.ndarray) -> np.ndarray:
    """Which int64 hashes say anything: those of flat pictures do not."""
    bits = np.bitwise_count(np.asarray(hashes, dtype=np.int64).view(np.uint64))
    return (bits >= FEWEST_BITS) & (bits <= BITS - FEWEST_BITS)


def leaks(train: Mapping[str, ShardSet], tests: Mapping[str, ShardSet], distance: int = DISTANCE) -> pa.Table:
    """Training images that are also in a test set: one row (`LEAKS`) per pair, sorted.

    Three reasons: `same bytes`, `same photograph` (a source id in common), `near-duplicate` (perceptual
    hashes at most `distance` apart, neither picture flat). Distance is -1 where hashes were not compared.
    """
    rows = []
    for dataset, left in sorted(train.items()):
        for testset, right in sorted(tests.items()):
            a, b = _columns(left), _columns(right)
            reasons = {
                **_near(a, b, distance),
                **_common(a, b, "source", "same photograph"),
                **_common(a, b, "sha256", "same bytes"),
            }
            for (i, j), (apart, reason) in reasons.items():
                rows.append(
                    {
                        "dataset": dataset,
                        "key": a["key"][i],
                        "testset": testset,
                        "test_key": b["key"][j],
                        "distance": apart,
                        "reason": reason,
                    }
                )
    rows.sort(key=lambda row: (row["dataset"], row["key"], row["testset"], row["test_key"]))
    return pa.Table.from_pylist(rows, schema=LEAKS)


def _columns(shard_set: ShardSet) -> dict[str, Any]:
    manifest = shard_set.manifest
    return {
        "key": manifest["key"].to_pylist(),
        "phash": manifest["phash"].to_numpy(),
        "source": manifest["source"].to_pylist(),
        "sha256": [[value] for value in manifest["image_sha256"].to_pylist()],
    }


Reasons = dict[tuple[int, int], tuple[int, str]]


def _near(a: Mapping[str, Any], b: Mapping[str, Any], distance: int) -> Reasons:
    left, right = np.flatnonzero(comparable(a["phash"])), np.flatnonzero(comparable(b["phash"]))
    i, j, apart = pairs(a["phash"][left], b["phash"][right], distance)
    return {(int(left[x]), int(right[y])): (int(d), "near-duplicate") for x, y, d in zip(i, j, apart, strict=True)}


def _common(a: Mapping[str, Any], b: Mapping[str, Any], column: str, reason: str) -> Reasons:
    """Pairs that share a value of a list column."""
    places: dict[str, list[int]] = defaultdict(list)
    for j, values in enumerate(b[column]):
        for value in values:
            places[value].append(j)
    return {
        (i, j): (-1, reason) for i, values in enumerate(a[column]) for value in values for j in places.get(value, ())
    }


def members(
    protocol: ModuleType,
    shard_sets: Mapping[str, ShardSet],
    test_sets: Mapping[str, ShardSet],
    distance: int = DISTANCE,
) -> tuple[pa.Table, pa.Table]:
    """(`MEMBERS` table, `LEAKS` table) of a protocol module (MEMBERS, VALIDATION).

    `shard_sets` has a set per dataset of the protocol, `test_sets` those that must not be trained on.
    Members are the images of the splits `train` and `VALIDATION` without those in the leaks table. Column
    `member` is the key of MEMBERS the image counts for: a dataset, or `dataset/part`.
    ValueError when a dataset of the protocol is missing or left without training images.
    """
    wanted: dict[str, list[str]] = defaultdict(list)
    for member in sorted(protocol.MEMBERS):
        wanted[member.split("/")[0]].append(member)
    absent = sorted(set(wanted) - set(shard_sets))
    if absent:
        raise ValueError(f"the protocol needs the sets {', '.join(absent)} too: dvc repro makes them")
    sets = {name: shard_sets[name] for name in wanted}
    leaked = leaks(sets, test_sets, distance)
    out = set(zip(leaked["dataset"].to_pylist(), leaked["key"].to_pylist(), strict=True))
    rows = []
    for dataset, shard_set in sorted(sets.items()):
        for row in shard_set.manifest.select(["key", "split", "kind", "meta"]).to_pylist():
            if (dataset, row["key"]) not in out and row["split"] in ("train", protocol.VALIDATION):
                member = _member(row, wanted[dataset])
                if member is not None:
                    rows.append({"dataset": dataset, "member": member, "key": row["key"], "split": row["split"]})
    empty = sorted(set(protocol.MEMBERS) - {row["member"] for row in rows if row["split"] == "train"})
    if empty:
        raise ValueError(f"no training images left for {', '.join(empty)}")
    rows.sort(key=lambda row: (row["member"], row["key"]))
    return pa.Table.from_pylist(rows, schema=MEMBERS), leaked


def _member(row: Mapping[str, Any], names: list[str]) -> str | None:
    """Which of a dataset's members an image belongs to: by its part, else (a stand-in) splices to `sp`, copy-move
    to the other parts and the rest to all, by the hash of the key. None: its part is none of the protocol's."""
    if "/" not in names[0]:
        return names[0]
    part = json.loads(row["meta"]).get("part")
    exact = [name for name in names if part is not None and name.endswith(f"/{part}")]
    if part is not None and not exact:
        return None
    splices = [name for name in names if name.endswith("/sp")]
    others = [name for name in names if name not in splices]
    fitting = exact or {"splice": splices, "copy_move": others}.get(row["kind"]) or names
    return fitting[int(seeds.fraction(0, row["key"], "member") * len(fitting))]
