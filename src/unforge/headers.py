"""Header baseline: what file format, size and bytes per pixel alone tell of an image's class. No pixel is looked at.

A categorical naive Bayes in numpy. It is no method that finds manipulations: it says how far a test set can be solved
without finding any, because its classes were saved differently. Source: unforge's own control; no paper has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unforge import paths, shards
from unforge.shards import ShardSet

CLASSES = ("real", "synthetic", "tampered")
"""In the order of class probabilities."""
BINS = 8
"""Bins of a number, with equally many of the training images each."""
SMOOTHING = 1.0
"""Added to every count."""
RARE = 0.01
"""Values that fewer of the training images have count as one value."""
NUMBERS = ("bytes_per_pixel", "pixels", "quantisation")
VALUES = ("extension", "size", "ratio", "mode")


def class_of(row: Mapping[str, Any]) -> int:
    """Index in `CLASSES` of a manifest row: authentic, generated as a whole, or anything else."""
    return 0 if row["label"] == 0 else 1 if row["kind"] == "generated" else 2


def features(shard_set: ShardSet, key: str) -> dict[str, Any]:
    """What stands in the manifest and in the file's header of one image.

    `quantisation` is the sum of a JPEG's luma table (-1 for other formats); ratio is the longer side over the shorter
    in tenths.
    """
    row = shard_set.row(key)
    header = shards.open_image(shard_set.image_bytes(key))
    luma = (getattr(header, "quantization", None) or {}).get(0, (-1,))
    width, height = row["width"], row["height"]
    return {
        "extension": row["extension"],
        "size": f"{width}x{height}",
        "ratio": f"{10 * max(width, height) // min(width, height)}",
        "mode": header.mode,
        "pixels": float(width * height),
        "bytes_per_pixel": row["image_size"] / (width * height),
        "quantisation": float(sum(luma)),
    }


@dataclass(frozen=True)
class Headers:
    """A fitted table of counts for each feature."""

    edges: Mapping[str, tuple[float, ...]]
    """Inner edges of the bins of each number."""
    counts: Mapping[str, Mapping[str, tuple[int, ...]]]
    """Images of each class by feature and value; the value "" is all that is rare or new."""
    images: tuple[int, ...]
    """Images of each class."""

    @property
    def digest(self) -> str:
        """Hex digest of everything that was fitted."""
        return paths.digest([dict(self.edges), {name: dict(table) for name, table in self.counts.items()}, self.images])

    def predict(self, rows: Iterable[Mapping[str, Any]]) -> npt.NDArray[np.float64]:
        """(n, 3) probability of each class, sums 1, of `features` rows. A class that nothing was fitted on gets 0."""
        found = []
        present = np.asarray(self.images) > 0
        for row in rows:
            logits = np.log(np.maximum(self.images, 1e-12))
            for name, table in self.counts.items():
                counts = np.asarray(table.get(_value(name, row, self.edges), table[""]), dtype=np.float64)
                logits += np.log((counts + SMOOTHING) / (np.asarray(self.images) + SMOOTHING * len(table)))
            logits[~present] = -np.inf
            weights = np.exp(logits - logits.max())
            found.append(weights / weights.sum())
        return np.asarray(found, dtype=np.float64).reshape(-1, len(CLASSES))


def fit(rows: Sequence[Mapping[str, Any]], classes: Sequence[int]) -> Headers:
    """Count. `rows` are `features`, `classes` the index in `CLASSES` of each. ValueError without rows."""
    if not rows or len(rows) != len(classes):
        raise ValueError(f"{len(rows)} rows and {len(classes)} classes: as many of both, at least one, are needed")
    edges = {}
    for name in NUMBERS:
        inner = np.quantile([row[name] for row in rows], np.arange(1, BINS) / BINS)
        edges[name] = tuple(sorted({float(edge) for edge in inner}))
    counts: dict[str, dict[str, list[int]]] = {}
    for name in (*VALUES, *NUMBERS):
        table: dict[str, list[int]] = {}
        for row, which in zip(rows, classes, strict=True):
            table.setdefault(_value(name, row, edges), [0] * len(CLASSES))[which] += 1
        common = {value: each for value, each in sorted(table.items()) if sum(each) >= max(2, RARE * len(rows))}
        rare = [each for value, each in table.items() if value not in common]
        counts[name] = {**common, "": [sum(each[i] for each in rare) for i in range(len(CLASSES))]}
    images = tuple(sum(which == i for which in classes) for i in range(len(CLASSES)))
    fixed = {name: {value: tuple(each) for value, each in table.items()} for name, table in counts.items()}
    return Headers(edges, fixed, images)


def _value(name: str, row: Mapping[str, Any], edges: Mapping[str, Sequence[float]]) -> str:
    if name in edges:
        return str(int(np.searchsorted(edges[name], row[name], side="right")))
    return str(row[name])


def score_rows(
    model: Headers, shard_set: ShardSet, *, run: str, seed: int, run_sha256: str, testset: str
) -> list[dict[str, Any]]:
    """Rows of `scores.SCHEMA` for every image of a test set: class probabilities, score = 1 - P(real), no mask."""
    rows = []
    names = ("key", "unit", "source", "label", "kind", "origin", "width", "height", "data")
    for key, probabilities in zip(
        shard_set.keys, model.predict(features(shard_set, key) for key in shard_set.keys), strict=True
    ):
        row = shard_set.row(key)
        rows.append(
            {name: row[name] for name in names}
            | {
                "score": float(1 - probabilities[0]),
                "class_probs": [float(value) for value in probabilities],
                "seed": seed,
                "testset": testset,
                "run": run,
                "run_sha256": run_sha256,
                "testset_sha256": shard_set.digest,
                "testset_version": shard_set.version,
            }
        )
    return rows


def fit_members(sets: Mapping[str, ShardSet], members: Iterable[Mapping[str, str]]) -> Headers:
    """Fit on the members (rows with dataset, key, split) of split `train`. ValueError when there are none."""
    listed = sorted({(row["dataset"], row["key"]) for row in members if row["split"] == "train"})
    rows = [features(sets[dataset], key) for dataset, key in listed]
    return fit(rows, [class_of(sets[dataset].row(key)) for dataset, key in listed])
