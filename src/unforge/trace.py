"""Did one of these models make someone's image? Signals of it, and a decision where held-out photographs set one.

Every result begins with what is known of the models: their scale, and how many of their own images they find. A
threshold is set at the asked false-positive rate on photographs that no rate is stated for; without them there is no
verdict. Families share tokenizers, so a family is named and never a checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unforge import inspect, paths, profiles, scores
from unforge.provenance import config, rates, resample

ALL = "all"
ENCODER = "inverse"
"""The encoder that decides, as in the paper."""
WEIGHTS = {"codebook": "model.safetensors", "inverse": "inverse.safetensors"}
ONE_CODEC = ("taming", "vqdiffusion")
"""Families with the same encoder and decoder: no signal can tell them apart."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A family as this profile has it. Its weights are not loaded yet."""

    name: str
    size: int
    """Side of its images (pixels)."""
    official: bool
    codebook: Path
    inverse: Path | None
    signal: str
    """The one that decides."""
    calibration: np.ndarray
    """(n,) float64: that signal of photographs that a threshold may be read from; empty when there are none."""
    sets: tuple[str, ...]
    """Where those come from."""
    threshold: float | None
    why: str
    """Why there is no threshold; empty when there is one."""
    rate: rates.Rate | None
    """What the threshold does on the test sets; None where it was not measured."""


def trace(
    images: list[Path],
    model: str,
    profile: profiles.Profile,
    fpr: float = rates.FPR,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """One row per image, in order: file, statement, sha256, width, height, models, likeliest.

    `model` is a family or "all". `models` has a row for each: model, size (pixels), scale, official, resampled (the
    image had another size), signals {own, inverse: {name: value}}, signal and encoder that decide, value, fpr,
    threshold, ratio (value / threshold), decision (value below the threshold; None without one), why (there is
    none), calibration {n, sets}. `likeliest` names the family with the smallest ratio (two, when they share a
    codec), [] when all are above their thresholds, None without thresholds. An image that cannot be read, and a
    model whose images are larger than it, have `error` instead. `progress(done, total)` counts images times models.

    ValueError: no such model, or a rate outside (0,1). FileNotFoundError: the model is not there.
    """
    if not 0 < fpr < 1:
        raise ValueError(f"false-positive rate {fpr}: between 0 and 1 is accepted")
    models = [opened(name, profile, fpr) for name in wanted(model, profile)]
    said = statement(models, profile, fpr, model == ALL)
    rows, pixels = [], []
    for path in images:
        row, sized = _read(path, models)
        rows.append({"file": os.fsencode(path).decode("utf-8", "replace"), "statement": said, **row})
        pixels.append(sized)
    for number, one in enumerate(models):
        codec, inverse = _load(one)
        for place, (row, sized) in enumerate(zip(rows, pixels, strict=True)):
            if "error" not in row:
                row["models"].append(_row(one, codec, inverse, sized[one.size], row, profile, fpr))
            if progress is not None:
                progress(number * len(images) + place + 1, len(models) * len(images))
    for row in rows:
        if "error" not in row:
            row["likeliest"] = likeliest(row["models"])
    return rows


def wanted(model: str, profile: profiles.Profile) -> list[str]:
    """The families asked for; for "all" those that are there. ValueError for an unknown one, FileNotFoundError for
    one that is not there."""
    from unforge import tokenizers

    if model != ALL and model not in tokenizers.names():
        raise ValueError(f"no model {model!r}: there is {', '.join(tokenizers.names())}, or {ALL}")
    names = tokenizers.names() if model == ALL else [model]
    found = [name for name in names if (_codebook(name, profile) / "config.json").is_file()]
    if not found:
        there = _codebook(names[0], profile) if len(names) == 1 else _codebook(names[0], profile).parent
        raise FileNotFoundError(f"{there} is not there: `dvc repro` trains it, `dvc pull` fetches it")
    return found


def opened(name: str, profile: profiles.Profile, fpr: float) -> Model:
    """What is known of a family: its size, its threshold at the false-positive rate `fpr`, and what that does."""
    codebook = _codebook(name, profile)
    about = paths.read_json(codebook / "meta.json") if (codebook / "meta.json").is_file() else {}
    inverse = paths.root() / paths.inverse(profile.name, name)
    measured = paths.root() / paths.scores(profile.name, f"iar_provenance/{name}/{ENCODER}/s0")
    signal, threshold, why, rate = config.ours(name), None, "", None
    values, sets = _calibration(measured / "calibration.parquet", signal)
    trained = (inverse / WEIGHTS["inverse"]).is_file()
    if not trained:
        why = f"there is no inverse decoder of {name}: `dvc repro` trains it"
    elif not len(values):
        why = f"no threshold was set: no held-out photographs have {signal} of {name} (`dvc repro` measures them)"
    elif not _same_weights(measured / "meta.json", {"codebook": codebook, "inverse": inverse}):
        why = f"the threshold of {name} was set for other weights than these: `dvc repro` sets it again"
    else:
        try:
            threshold = rates.calibrated(values, fpr)
        except ValueError as error:  # too few of them for this rate
            why = str(error)
    if threshold is not None:
        rate = _rate(measured, name, signal, values, sets, fpr)
    return Model(
        name=name, size=int(paths.read_json(codebook / "config.json")["config"]["image_size"]),
        official=bool(about.get("config", {}).get("official")), codebook=codebook,
        inverse=inverse if trained else None, signal=signal,
        calibration=values, sets=sets, threshold=threshold, why=why, rate=rate,
    )  # fmt: skip


def _codebook(name: str, profile: profiles.Profile) -> Path:
    return paths.root() / paths.codebook(profile.name, name)


def _calibration(file: Path, signal: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """A signal of the held-out photographs, (n,) float64, and the names of their sets."""
    if not file.is_file():
        return np.zeros(0), ()
    table = pq.read_table(file, columns=["testset", "signal", "value"])
    table = table.filter(pc.equal(table["signal"], signal))
    return table["value"].to_numpy(), tuple(sorted(set(table["testset"].to_pylist())))


def _same_weights(meta: Path, folders: Mapping[str, Path]) -> bool:
    """Whether a calibration, which says so in its `meta.json`, was made with the weights that are there now."""
    inputs = paths.read_json(meta)["inputs"] if meta.is_file() else {}
    return all(inputs.get(role) == paths.sha256(folder / WEIGHTS[role]) for role, folder in folders.items())


def _rate(
    folder: Path, name: str, signal: str, calibration: np.ndarray, sets: Iterable[str], fpr: float
) -> rates.Rate | None:
    """Rates on the model's own test images and on the test photographs of the sets it was calibrated with."""
    files = [folder / f"{testset}.parquet" for testset in (paths.generated(name), *sets)]
    positives, *negatives = [_signals(file, signal) if file.is_file() else np.zeros(0) for file in files]
    return rates.held_out(positives, np.concatenate(negatives), calibration, fpr) if len(positives) else None


def _signals(file: Path, signal: str) -> np.ndarray:
    """A signal of those rows of a score file that have it, (n,): costly ones are not taken everywhere."""
    found = [dict(row or []) for row in scores.read(file)["signals"].to_pylist()]
    return np.array([row[signal] for row in found if signal in row], dtype=np.float64)


def statement(models: Iterable[Model], profile: profiles.Profile, fpr: float, everything: bool = False) -> str:
    """What must be known before a result is read: scale of the models, what they find, what follows."""
    models = list(models)
    own, official = ([m for m in models if m.official == which] for which in (False, True))
    parts = []
    if own:
        parts.append(f"Models at {profile.model} scale, trained in this project: {_sizes(own)}.")
        parts.append("This is no evidence: they are not the generators that people use, only small ones of their kind.")
    if official:
        parts.append(f"Official weights: {_sizes(official)}.")
        parts.append("A signal is an estimate: photographs unlike those it was calibrated on may behave otherwise.")
    measured = [_found(model) for model in models if model.rate and model.rate.value is not None]
    parts.append(f"Measured at {_percent(fpr)} false positives: {'; '.join(measured)}." if measured else NOT_MEASURED)
    parts.append("Families share tokenizers: a match names a family, not a checkpoint.")
    if {model.name for model in models} & set(ONE_CODEC):
        parts.append(f"{ONE_CODEC[0]} and {ONE_CODEC[1]} share a codec and cannot be told apart.")
    missing = sorted(set(_families()) - {model.name for model in models}) if everything else []
    if missing:
        parts.append(f"Not there and not looked at: {', '.join(missing)}.")
    return " ".join(parts)


NOT_MEASURED = "How many of their own images they find: not measured."


def _families() -> list[str]:
    from unforge import tokenizers

    return tokenizers.names()


def _sizes(models: Iterable[Model]) -> str:
    return ", ".join(f"{model.name} ({model.size} px)" for model in models)


def _found(model: Model) -> str:
    rate = model.rate
    assert rate is not None
    assert rate.value is not None
    span = "" if rate.ci_low is None or rate.ci_high is None else f" ({rate.ci_low:.3f} to {rate.ci_high:.3f})"
    text = f"{model.name} finds {rate.value:.3f}{span} of its own images, n {rate.n}"
    reached = "" if rate.fpr is None else f", and {rate.fpr:.3f} of {rate.negatives} photographs"
    return f"{text}{reached} ({', '.join(model.sets)})"


def _read(path: Path, models: Iterable[Model]) -> tuple[dict[str, Any], dict[int, np.ndarray | str]]:
    """Row of an image file, and its pixels at each size that the models need, or why there are none."""
    from unforge import evaluate

    try:
        data = inspect.read(path)
        image = inspect.decode(data, evaluate.MAX_PIXELS)
    except (ValueError, OSError, MemoryError) as error:
        return {"error": str(error) or type(error).__name__}, {}
    sized: dict[int, np.ndarray | str] = {}
    for size in {model.size for model in models}:
        try:
            sized[size] = resample.to_size(image, size)
        except ValueError as error:
            sized[size] = str(error)
    row = {"sha256": hashlib.sha256(data).hexdigest(), "width": image.shape[1], "height": image.shape[0]}
    return {**row, "models": []}, sized


def _load(model: Model) -> tuple[Any, Any]:
    """Tokenizer and inverse decoder (or None), frozen."""
    from unforge import tokenizers
    from unforge.provenance import inverse

    codec: Any = tokenizers.load(model.codebook).requires_grad_(False)
    return codec, None if model.inverse is None else inverse.load(codec, model.inverse)


def _row(
    model: Model,
    codec: Any,
    inverse: Any,
    pixels: np.ndarray | str,
    image: Mapping[str, Any],
    profile: profiles.Profile,
    fpr: float,
) -> dict[str, Any]:
    """What one model says of one image."""
    row: dict[str, Any] = {"model": model.name, "size": model.size, "official": model.official, "scale": profile.model}
    if isinstance(pixels, str):
        return row | {"error": pixels}
    row["resampled"] = (image["width"], image["height"]) != (model.size, model.size)
    try:
        row["signals"] = _measured(model, codec, inverse, pixels)
    except (ValueError, RuntimeError, MemoryError) as error:
        return row | {"error": str(error) or type(error).__name__}
    value = row["signals"].get(ENCODER, {}).get(model.signal)
    threshold = model.threshold
    row |= {"signal": model.signal, "encoder": ENCODER, "value": value, "fpr": fpr, "threshold": threshold}
    row |= {"ratio": None, "decision": None, "why": model.why}
    row["calibration"] = {"n": len(model.calibration), "sets": list(model.sets)}
    if threshold is not None and value is not None:
        row["ratio"] = value / threshold if threshold > 0 else None
        row["decision"] = value < threshold
    return row


def _measured(model: Model, codec: Any, inverse: Any, pixels: np.ndarray) -> dict[str, dict[str, float]]:
    """The paper's signals by encoder, and with the inverse decoder the one that decides. ValueError when one is no
    number."""
    import torch

    from unforge.provenance import score, signals

    cpu = torch.device("cpu")
    (own,) = score.measured(codec, None, [pixels], signals.PAPER, device=cpu)
    found = {"own": own}
    if inverse is not None:
        names = tuple(dict.fromkeys((*signals.PAPER, model.signal)))
        (found[ENCODER],) = score.measured(codec, inverse, [pixels], names, device=cpu)
    wrong = sorted({name for values in found.values() for name, value in values.items() if not math.isfinite(value)})
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of {model.name}: not a number")
    return found


def likeliest(rows: Iterable[Mapping[str, Any]]) -> list[str] | None:
    """The family whose signal lies furthest below its threshold; with it, the one it shares a codec with. [] when all
    are above, None when no row has a threshold."""
    ratios = {row["model"]: row["ratio"] for row in rows if row.get("ratio") is not None}
    if not ratios:
        return None
    best = min(ratios, key=lambda name: (ratios[name], name))
    if ratios[best] >= 1:
        return []
    return list(ONE_CODEC) if best in ONE_CODEC else [best]


def echo(rows: Iterable[Mapping[str, Any]], write: Callable[[str], Any]) -> None:
    """The rows for people: the statement first, then each image with a line per model."""
    rows = list(rows)
    for said in dict.fromkeys(row["statement"] for row in rows):
        write(said)
    for row in rows:
        file = inspect.printable(row["file"])
        if row.get("error"):
            write(f"{file}: not traced: {inspect.printable(row['error'])}")
            continue
        write(f"{file} ({row['width']}x{row['height']}):")
        for one in row["models"]:
            write(f"  {one['model']}: {_line(one)}")
        if len(row["models"]) > 1:
            write(f"  likeliest family: {_likeliest(row)}")


def _line(row: Mapping[str, Any]) -> str:
    if row.get("error"):
        return f"not measured: {inspect.printable(row['error'])}"
    shown = row["signals"].get(ENCODER, row["signals"]["own"])
    encoder = "inverse decoder" if ENCODER in row["signals"] else "own encoder"
    name = row["signal"] if row["signal"] in shown else "combined"
    text = f"{name} {shown[name]:.3g} ({encoder})"
    if row["resampled"]:
        text += f", brought to {row['size']} px, which weakens the signal"
    if row["decision"] is None:
        return f"{text}; no verdict: {row['why']}"
    below = "below the threshold, as its own images" if row["decision"] else "not below the threshold"
    basis = f"{row['threshold']:.3g} at {_percent(row['fpr'])} false positives, n {row['calibration']['n']}"
    return f"{text}; {below} ({basis})"


def _likeliest(row: Mapping[str, Any]) -> str:
    if row["likeliest"] is None:
        return "not said, as there are no thresholds"
    return " or ".join(row["likeliest"]) or "none"


def _percent(fpr: float) -> str:
    return f"{100 * fpr:g} %"


def failed(rows: Iterable[Mapping[str, Any]]) -> int:
    """Exit status: 0 every image was measured with every model, 1 some were not, 2 none was."""
    wrong = [[True] if "error" in row else ["error" in one for one in row["models"]] for row in rows]
    return 2 if all(map(all, wrong)) else 1 if any(map(any, wrong)) else 0
