"""What a trained method says of a test set: one row per image, at the image's original resolution.

A method predicts at the size it likes; its mask is brought back to the original size bilinearly
(align_corners False), and only then compared with the truth. Images go through one at a time, so that no row
depends on what else is in a batch. The image score is the method's own, or else the largest value of the
mask at its original size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from unforge import paths, scores, seeds, shards
from unforge.shards import ShardSet
from unforge.types import Method, Prediction

MAX_PIXELS = 64_000_000
"""Largest image that is scored (pixels): about 2 GB at work."""
ATTENTION = "attention_last"
"""The extra that is kept for figures, of methods that declare it."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

SAMPLES = pa.schema(
    [
        ("testset", pa.string()),
        ("key", pa.string()),
        ("kind", pa.string()),
        ("data", pa.string()),
        ("image", pa.binary()),
        ("extension", pa.string()),
        ("mask", pa.binary()),
        ("prediction", pa.binary()),
        ("f1", pa.float64()),
        ("attention", pa.binary()),
        ("anchor_x", pa.float64()),
        ("anchor_y", pa.float64()),
        ("text", pa.string()),
        ("redistribute", pa.bool_()),
    ]
)
"""A few images per test set for figures: the original file, PNGs of the truth (0, 255), of the probability
(0-255) and of the attention of one anchor (scaled to its maximum); the anchor in [0,1] of width and height; what
the method wrote of the image."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained run as score rows name it."""

    name: str
    sha256: str
    """Hash of its weights and its configuration."""
    seed: int
    about: Mapping[str, Any]
    """What the score files say of it: method, variant, scale, pretraining, recipe."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Results on one test set."""

    rows: list[dict[str, Any]]
    """Rows of `scores.SCHEMA`, sorted by key; every key of the manifest once."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `SAMPLES`, sorted by key."""


class EvaluationError(RuntimeError):
    """An image could not be scored; the message names it and its set."""


def read_run(folder: Path, name: str) -> Run:
    """The run in `folder`. FileNotFoundError says how to get one that is not there."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not there: `dvc repro` trains it, `dvc pull` fetches it")
    config, meta = paths.read_json(folder / "config.json"), paths.read_json(folder / "meta.json")
    recipe = config.get("config", {}).get("recipe") or {}
    about = {key: config.get(key, "") for key in ("method", "variant", "scale")}
    about["pretraining"] = meta["config"]["pretraining"]
    about["recipe"] = recipe.get("source", "")
    files = {file: paths.sha256(folder / file) for file in ("config.json", "model.safetensors")}
    return Run(name=name, sha256=paths.digest(files), seed=int(meta["seed"]), about=about)


def evaluate(
    method: Method,
    shard_set: ShardSet,
    *,
    run: Run,
    testset: str,
    device: torch.device,
    dtype: str = "float32",
    workers: int = 0,
    samples: int = 0,
    redistribute: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Scored:
    """Score `method` on every image of the set, authentic ones too.

    `dtype` is the autocast type; `workers` threads read and decode ahead (0: none), which changes no
    row; `samples` images are kept for figures, `redistribute` says whether they may be published.
    Raises ValueError when an image has more than `max_pixels` pixels, EvaluationError naming key and
    set when one cannot be scored.
    """
    for row in shard_set.rows.values():
        if row["width"] * row["height"] > max_pixels:
            raise ValueError(
                f"{testset}: image {row['key']} has {row['width']}x{row['height']} pixels, more than {max_pixels}: "
                "leave it out of the set or shrink it beforehand"
            )
    chosen = choose(shard_set, samples)
    scored = Scored(rows=[])
    autocast = torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32")
    bar = tqdm(total=len(shard_set), desc=f"{run.name} on {testset}", disable=None)
    with torch.inference_mode(), autocast, bar:
        for key, image, mask in _read(shard_set, testset, workers):
            row = shard_set.row(key)
            try:
                prediction = method.predict(to_tensor(image, device), extras=key in chosen)
                probability = restore(prediction.mask, mask.shape)
                values = _values(prediction, probability, mask)
            except Exception as error:
                raise EvaluationError(f"{testset}: image {key}: {type(error).__name__}: {error}") from error
            scored.rows.append({**values, **_identity(row, shard_set, run, testset)})
            if key in chosen:
                shown = _sample(row, shard_set, prediction, probability, mask)
                scored.samples.append({**shown, "testset": testset, "redistribute": redistribute})
            bar.update()
    return scored


def write(folder: Path, testset: str, scored: Scored, run: Run, data: str) -> None:
    """Write the rows as `<testset>.parquet` into `folder`."""
    scores.write(folder / f"{testset}.parquet", scored.rows, _about(run, data) | {"testset": testset})


def write_samples(folder: Path, samples: Sequence[Mapping[str, Any]], run: Run) -> None:
    """Write the samples of all test sets as `samples.parquet` into `folder`."""
    data = sorted({row["data"] for row in samples})
    schema = SAMPLES.with_metadata(
        {"unforge": json.dumps(_about(run, data[0] if len(data) == 1 else "mixed" if data else ""), sort_keys=True)}
    )
    rows = sorted(samples, key=lambda row: (row["testset"], row["key"]))
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), folder / "samples.parquet")


def choose(shard_set: ShardSet, count: int) -> set[str]:
    """Keys of the images kept for figures: manipulated ones, by a hash of the key, so every run keeps the same."""
    keys = [key for key, row in shard_set.rows.items() if row["mask_size"] is not None]
    return set(sorted(keys, key=lambda key: (seeds.integer(0, key, "figure"), key))[:count])


def to_tensor(image: np.ndarray, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) float in [0,1]."""
    pixels = torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)[None]
    return pixels.contiguous().float().div_(255)


def restore(mask: Tensor | None, size: tuple[int, ...]) -> np.ndarray | None:
    """(1, 1, h, w) probabilities to (H, W) float32 at the original size, bilinear with align_corners False."""
    if mask is None:
        return None
    if mask.shape[:2] != (1, 1):
        raise ValueError(f"expected a mask of shape (1, 1, h, w), got {tuple(mask.shape)}")
    full = mask.float()
    if tuple(full.shape[2:]) != tuple(size):
        full = functional.interpolate(full, size=tuple(size), mode="bilinear", align_corners=False)
    # bilinear weights sum to 1 within rounding only; NaN passes and is refused by pixel_statistics
    return full.clamp(0, 1)[0, 0].cpu().numpy()


def _read(shard_set: ShardSet, testset: str, workers: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Key, image and mask of every row in the manifest's order; at most `workers` images ahead."""

    def one(key: str) -> tuple[str, np.ndarray, np.ndarray]:
        try:
            return key, shard_set.image(key), shard_set.mask(key)
        except Exception as error:
            raise EvaluationError(f"{testset}: image {key}: {error}") from error

    keys = iter(shard_set.keys)
    if workers == 0:
        yield from map(one, keys)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: list[Future[tuple[str, np.ndarray, np.ndarray]]] = [pool.submit(one, k) for k in islice(keys, workers)]
        while ahead:
            done = ahead.pop(0).result()
            ahead += [pool.submit(one, key) for key in islice(keys, 1)]
            yield done


def _identity(row: Mapping[str, Any], shard_set: ShardSet, run: Run, testset: str) -> dict[str, Any]:
    names = ("key", "unit", "source", "label", "kind", "origin", "width", "height", "data")
    return {name: row[name] for name in names} | {
        "seed": run.seed,
        "testset": testset,
        "run": run.name,
        "run_sha256": run.sha256,
        "testset_sha256": shard_set.digest,
        "testset_version": shard_set.version,
    }


def _values(prediction: Prediction, probability: np.ndarray | None, mask: np.ndarray) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if probability is not None:
        values |= scores.pixel_statistics(probability, mask).columns()
        values["score"] = float(probability.max())
    if prediction.score is not None:
        values["score"] = float(prediction.score)
    if prediction.class_probs is not None:
        values["class_probs"] = prediction.class_probs[0].float().tolist()
    if prediction.signals is not None:
        values["signals"] = {name: float(value) for name, value in prediction.signals.items()}
    return values


def _sample(
    row: Mapping[str, Any],
    shard_set: ShardSet,
    prediction: Prediction,
    probability: np.ndarray | None,
    mask: np.ndarray,
) -> dict[str, Any]:
    shown: dict[str, Any] = {name: row[name] for name in ("key", "kind", "data", "extension")}
    shown |= {"image": shard_set.image_bytes(row["key"]), "mask": shards.encode_png(mask)}
    if probability is not None:
        shown["prediction"] = shards.encode_png(np.rint(probability * 255).astype(np.uint8))
        found = probability > scores.THRESHOLD
        either = int(found.sum()) + int(mask.sum())
        shown["f1"] = 2 * int((found & mask).sum()) / either if either else 1.0
    if prediction.text is not None:
        shown["text"] = prediction.text[0]
    if ATTENTION in prediction.extras:
        shown |= attention_of_anchor(prediction.extras[ATTENTION], mask)
    return shown


def attention_of_anchor(attention: Tensor, mask: np.ndarray) -> dict[str, Any]:
    """Columns `attention`, `anchor_x`, `anchor_y`: where the anchor that lies deepest in the mask looks.

    `attention` (1, a, b, c, d): for each anchor of an (a, b) grid over the image, weights on a (c, d) grid.
    The anchor is the cell of the pixel farthest from everything authentic, of equals the one nearest their centre.
    """
    import cv2

    if attention.ndim != 5 or attention.shape[0] != 1:
        raise ValueError(f"expected attention of shape (1, a, b, c, d), got {tuple(attention.shape)}")
    maps = attention[0].float().cpu()
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    deepest = np.argwhere(depth == depth.max())
    row, column = deepest[np.square(deepest - deepest.mean(0)).sum(1).argmin()].tolist()
    y, x = row * maps.shape[0] // mask.shape[0], column * maps.shape[1] // mask.shape[1]
    weights = maps[y, x].numpy()
    grey = np.rint(255 * weights / max(float(weights.max()), 1e-12)).astype(np.uint8)
    return {
        "attention": shards.encode_png(grey),
        "anchor_x": (x + 0.5) / maps.shape[1],
        "anchor_y": (y + 0.5) / maps.shape[0],
    }


def _about(run: Run, data: str) -> dict[str, Any]:
    return {**run.about, "run": run.name, "seed": run.seed, "data": data}
