"""Score files of a model's signals: a row per image, with every signal that was taken of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from unforge import paths, scores, seeds, tokenizers
from unforge.provenance import config, controls, inverse, resample, signals
from unforge.provenance.contract import Codec, Encoder
from unforge.shards import ShardSet

CHEAP = ("quant_loss", "enc_loss", "enc_loss_calibrated", "combined", "reconstruction", "aedr_homogeneity")
"""Signals that every image gets: a few passes."""
BATCH = 64
CALIBRATION = pa.schema(
    [("testset", pa.string()), ("key", pa.string()), ("signal", pa.string()), ("value", pa.float64())]
)
"""Signals of photographs that no rate is stated for: thresholds are read from them."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images of one set at a model's size."""

    rows: list[dict[str, Any]]
    """Manifest rows, sorted by key."""
    pixels: list[np.ndarray]
    """(S,S,3) uint8."""
    refused: dict[str, str]
    """Keys of images that were left out, and why."""


def read(shards: ShardSet, split: str, size: int, limit: int | None, seed: int) -> Images:
    """Images of a split at the model's size, at most `limit` (None: all), chosen by a hash of their key.

    One that is too small is left out, with the reason, and the next takes its place. ValueError when none is left.
    """
    keys = sorted(
        (key for key, row in shards.rows.items() if row["split"] == split),
        key=lambda key: (seeds.integer(seed, key, "signals"), key),
    )
    found: dict[str, np.ndarray] = {}
    refused = {}
    for key in keys:
        if limit is not None and len(found) == limit:
            break
        try:
            found[key] = resample.to_size(shards.image(key), size)
        except ValueError as error:
            refused[key] = str(error)
    if not found:
        raise ValueError(f"{shards.path}: no usable image of split {split!r} ({len(refused)} refused: {refused})")
    order = sorted(found)
    return Images(rows=[shards.row(key) for key in order], pixels=[found[key] for key in order], refused=refused)


def chosen(keys: Iterable[str], count: int | None, seed: int) -> set[str]:
    """The images that costly signals are taken of, by a hash of their key."""
    return set(sorted(keys, key=lambda key: (seeds.integer(seed, key, "costly"), key))[:count])


@torch.no_grad()
def measured(
    tokenizer: Codec,
    encoder: Encoder | None,
    pixels: Sequence[np.ndarray],
    names: Sequence[str],
    *,
    device: torch.device,
    search: config.Search | None = None,
    tracer: config.Tracer | None = None,
) -> list[dict[str, float]]:
    """The named signals of images (S,S,3) uint8, in their order; `encoder` None is the tokenizer's own."""
    found: list[dict[str, float]] = []
    for first in range(0, len(pixels), BATCH):
        stacked = torch.from_numpy(np.stack(pixels[first : first + BATCH])).to(device)
        image = stacked.permute(0, 3, 1, 2).contiguous().float().div_(255)
        values = signals.measure(tokenizer, image, names, encoder, search, tracer)
        columns = [values[name].tolist() for name in names]
        found += [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return found


def rows(
    images: Images, values: Sequence[Mapping[str, float]], testset: str, shards: ShardSet, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of `scores.SCHEMA`; `about`: `run`, `run_sha256`, `seed`."""
    names = ("key", "unit", "source", "label", "kind", "origin", "width", "height", "data")
    return [
        {name: row[name] for name in names}
        | {"testset": testset, "testset_sha256": shards.digest, "testset_version": shards.version}
        | dict(about)
        | {"signals": dict(value)}
        for row, value in zip(images.rows, values, strict=True)
    ]


def prepared(images: Images, testset: str, seed: int, like: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Pixels after what `testset` says was done, and the blur where it was matched to the images `like` (else 0)."""
    if controls.parse(testset)[1] == controls.MATCHED:
        return controls.matched(images.pixels, like)
    return controls.done(images.pixels, [row["key"] for row in images.rows], testset, seed), 0.0


@dataclass(frozen=True, kw_only=True)
class Model:
    """A tokenizer and what brings images to its features."""

    name: str
    encoder: str
    """One of `config.ENCODERS`."""
    tokenizer: Any
    """A `tokenizers.base.Tokenizer`."""
    inverse: inverse.InverseDecoder | None
    weights: Mapping[str, str]
    """Hashes of the weight files."""


def load(profile: str, name: str, encoder: str, device: torch.device) -> Model:
    """The model of a profile. FileNotFoundError says how to make what is not there."""
    folder = paths.codebook(profile, name)
    tokenizer = tokenizers.load(folder).to(device)
    weights = {"codebook": paths.sha256(folder / "model.safetensors")}
    found = None
    if encoder != "own":
        place = paths.inverse(profile, config.label(name, encoder))
        if not (place / inverse.WEIGHTS).is_file():
            raise FileNotFoundError(f"{place} is not there: `dvc repro` makes it, `dvc pull {place}` fetches it")
        weights["inverse"] = paths.sha256(place / inverse.WEIGHTS)
        found = inverse.load(tokenizer, place).to(device)
    return Model(name=name, encoder=encoder, tokenizer=tokenizer, inverse=found, weights=weights)


def write(
    target: Path, run: str, model: Model, sets: Mapping[str, ShardSet], testsets: Sequence[str],
    costly: Mapping[str, Sequence[str]], *, scale: Mapping[str, Any], said: str, device: torch.device, seed: int,
) -> None:  # fmt: skip
    """Score files of `testsets` (split `test`) and `calibration.parquet` (photographs of split `val`) in `target`.

    `sets`: every unperturbed set by name; `costly`: test sets by costly signal; `scale`: images of a set, and how many
    costly signals are taken of (`costly_images`); `said`: scale of the model.
    """
    about = {"run": run, "run_sha256": paths.digest(dict(model.weights)), "seed": 0}
    meta = {"run": run, "method": run.split("/")[0], "variant": model.encoder, "origin": model.name, "scale": said}
    meta |= {"pretraining": "none", "recipe": config.recipe(tokenizers.load_module(model.name).RECIPE).source}
    size, own = model.tokenizer.image_size, paths.generated(model.name)
    images = {base: read(shards, "test", size, scale["images"], seed) for base, shards in sets.items()}
    details: dict[str, Any] = {base: {"refused": found.refused} for base, found in images.items() if found.refused}
    for testset in testsets:
        base = controls.parse(testset)[0]
        found, shards = images[base], sets[base]
        pixels, sigma = prepared(found, testset, seed, images[own].pixels if own in images else [])
        if sigma:
            details[testset] = {"sigma": sigma}
        values = measured(model.tokenizer, model.inverse, pixels, CHEAP, device=device)
        extra = [signal for signal, places in costly.items() if testset in places]
        if extra:
            keys = [row["key"] for row in found.rows]
            taken = chosen(keys, scale["costly_images"], seed)
            some = [place for place, key in enumerate(keys) if key in taken]
            more = measured(model.tokenizer, model.inverse, [pixels[place] for place in some], extra, device=device)
            for place, value in zip(some, more, strict=True):
                values[place] |= value
        done = rows(found, values, testset, shards, about)
        scores.write(target / f"{testset}.parquet", done, meta | {"testset": testset, "data": shards.data, "seed": 0})
        print(f"{testset}: {len(done)} images", flush=True)
    _calibrate(target / "calibration.parquet", model, sets, costly, scale["costly_images"], device, seed)
    inputs = dict(model.weights) | {base: shards.digest for base, shards in sets.items()}
    said_of = meta | {"testsets": list(testsets), "sets": details, "images": dict(scale)}
    paths.write_json(target / "meta.json", paths.meta(said_of, 0, inputs))


def _calibrate(
    file: Path, model: Model, sets: Mapping[str, ShardSet], costly: Mapping[str, Any], limit: int,
    device: torch.device, seed: int,
) -> None:  # fmt: skip
    """Every photograph has the cheap signals; the model's own signal, if it is a costly one that is taken, `limit`."""
    found, left = [], limit
    extra = [signal for signal in (config.ours(model.name),) if costly.get(signal)]
    for base, shards in sorted(sets.items()):
        if not any(row["origin"] is None and row["split"] == "val" for row in shards.rows.values()):
            continue
        images = read(shards, "val", model.tokenizer.image_size, None, seed)
        for names, count in ((CHEAP, len(images.pixels)), (extra, left if extra else 0)):
            values = measured(model.tokenizer, model.inverse, images.pixels[:count], names, device=device)
            for row, value in zip(images.rows, values, strict=False):
                key = {"testset": base, "key": row["key"]}
                found += [key | {"signal": signal, "value": number} for signal, number in value.items()]
        left = max(0, left - len(images.pixels))
    pq.write_table(pa.Table.from_pylist(found, schema=CALIBRATION), file)
