"""Masks beside truth, in the kind of a paper's qualitative figures.

Which variants stand side by side is named in `plates`; the images come from the `samples.parquet` that evaluation
wrote for each run, chosen there by a hash of their key and never by result.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from unforge import paths, shards
from unforge.report import overlays
from unforge.report.plates import PLATES, Plate

SIDE = 168
"""Longer side of a picture in the page, pixels."""
LEFT_OUT = "left out"
ORIENTATION = 0x0112
"""EXIF tag."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One tile of the gallery."""

    label: str
    uri: str
    """Data URI; empty when there is nothing to show."""
    alt: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One image and what each variant says of it."""

    testset: str
    key: str
    kind: str
    data: str
    pictures: list[Picture]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a method wrote of one image."""

    label: str
    where: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Wall:
    """A filled-in plate."""

    plate: Plate
    strips: list[Strip]
    columns: list[str]
    scale: str
    missing: list[str]
    """Labels of the variants without samples."""
    withheld: list[str] = field(default_factory=list)
    """Real sets of which nothing may be passed on."""
    bare: list[str] = field(default_factory=list)
    """Stand-ins whose photographs may not be passed on: masks and predictions, which are ours, are shown alone."""
    said: Said | None = None


@dataclass(frozen=True, kw_only=True)
class _Run:
    variant: str
    scale: str
    rows: dict[tuple[str, str], dict[str, Any]]


def walls(paper: str, profile: str) -> list[Wall]:
    """The paper's plates, filled with the samples that exist. Empty for a paper without plates."""
    return [_wall(plate, _runs(paths.scores(profile, paper) / plate.protocol)) for plate in PLATES.get(paper, ())]


def _runs(folder: Path) -> dict[str, _Run]:
    """By what a run's name says of method and variant, `""` for the full method; of several seeds the first."""
    runs: dict[str, _Run] = {}
    for path in sorted(folder.rglob("samples.parquet")):
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {}).get(b"unforge", b"{}"))
        variant = path.parent.parent.name
        variant = "" if variant == "full" else variant
        rows = {(row["testset"], row["key"]): row for row in table.to_pylist()}
        run = _Run(variant=variant, scale=str(about.get("scale", "")), rows=rows)
        runs.setdefault(variant, run)
    return runs


def _wall(plate: Plate, runs: dict[str, _Run]) -> Wall:
    there = {variant: label for variant, label in plate.variants.items() if variant in runs}
    missing = [label for variant, label in plate.variants.items() if variant not in there]
    shared = [set(runs[variant].rows) for variant in there]
    common = sorted(set.intersection(*shared)) if shared else []
    first = runs[next(iter(there))] if there else None
    shown = {name: first.rows[name] for name in common} if first else {}
    rows = {name: row for name, row in shown.items() if row["mask"] is not None}
    closed = {name[0]: row["data"] for name, row in rows.items() if not row["redistribute"]}
    withheld = sorted(testset for testset, data in closed.items() if data != "stand_in")
    ends = ("", ", over the image") if plate.overlay else ("",)
    chosen = _choose([name for name in rows if name[0] not in withheld], plate.images)
    return Wall(
        plate=plate,
        strips=[_strip(plate, there, runs, name) for name in chosen],
        columns=["image", "truth", *(f"{label}{end}" for label in there.values() for end in ends)],
        scale=", ".join(sorted({runs[variant].scale for variant in there})),
        missing=missing,
        withheld=withheld,
        bare=sorted(set(closed) - set(withheld)),
        said=_said_of(plate, there, runs, chosen),
    )


def _said_of(plate: Plate, there: dict[str, str], runs: dict[str, _Run], chosen: list[tuple[str, str]]) -> Said | None:
    """The first text about an image that is shown."""
    if plate.said is None or plate.said not in there:
        return None
    for name in chosen:
        if text := runs[plate.said].rows[name].get("text"):
            return Said(label=there[plate.said], where=f"{name[0]} {name[1]}", text=text)
    return None


def _choose(names: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Round the test sets, one image each time, keys in order: every set is shown before one is shown twice."""
    testsets = sorted({name[0] for name in names})
    queues = [[name for name in names if name[0] == testset] for testset in testsets]
    turns = [(place, name) for queue in queues for place, name in enumerate(queue)]
    return [name for _, name in sorted(turns)[:count]]


def _strip(plate: Plate, there: dict[str, str], runs: dict[str, _Run], name: tuple[str, str]) -> Strip:
    rows = {variant: runs[variant].rows[name] for variant in there}
    row = next(iter(rows.values()))
    where = f"{name[0]} {name[1]}"
    truth = _grey(row["mask"])
    image = _photograph(row["image"], truth.shape) if row["redistribute"] else None
    pictures = [_plain(image, where), Picture(label="truth", uri=_mask(truth, sharp=True), alt=f"True mask of {where}")]
    for variant, label in there.items():
        pictures.append(_said(plate, rows[variant], label, where, image, truth.shape))
        if plate.overlay:
            pictures.append(_over(rows[variant], label, where, image, truth))
    return Strip(testset=name[0], key=name[1], kind=row["kind"], data=row["data"], pictures=pictures)


def _plain(image: np.ndarray | None, where: str) -> Picture:
    if image is None:
        return Picture(label="image", uri="", alt="", caption=LEFT_OUT)
    uri = overlays.jpeg_uri(overlays.thumbnail(image, SIDE))
    return Picture(label="image", uri=uri, alt=f"Image {where}")


def _said(
    plate: Plate, row: dict[str, Any], label: str, where: str, image: np.ndarray | None, size: tuple[int, ...]
) -> Picture:
    if plate.show == "attention":
        if row["attention"] is None:
            return Picture(label=label, uri="", alt="", caption="no attention map")
        under = np.zeros((*size, 3), dtype=np.uint8) if image is None else image
        anchor = (float(row["anchor_x"]), float(row["anchor_y"]))
        shown = overlays.heat(overlays.thumbnail(under, SIDE), _grey(row["attention"]) / 255.0, anchor)
        return Picture(label=label, uri=overlays.jpeg_uri(shown), alt=f"Attention of the cross in {where}, {label}")
    if row["prediction"] is None:
        return Picture(label=label, uri="", alt="", caption="no mask")
    caption = "" if row["f1"] is None else f"F1 {row['f1']:.2f}"
    uri = _mask(_grey(row["prediction"]))
    return Picture(label=label, uri=uri, alt=f"Predicted mask of {where}, {label}", caption=caption)


def _over(row: dict[str, Any], label: str, where: str, image: np.ndarray | None, truth: np.ndarray) -> Picture:
    if image is None or row["prediction"] is None:
        return Picture(label=label, uri="", alt="", caption=LEFT_OUT if image is None else "no mask")
    layers = [overlays.thumbnail(layer, SIDE) for layer in (image, truth, _grey(row["prediction"]))]
    shown = overlays.overlay(layers[0], layers[2] / 255.0, layers[1] > 127)
    return Picture(label=label, uri=overlays.jpeg_uri(shown), alt=f"Prediction over {where}, {label}")


def _mask(mask: np.ndarray, *, sharp: bool = False) -> str:
    small = overlays.thumbnail(mask, SIDE, sharp=sharp)
    return overlays.png_uri(small) if sharp else overlays.jpeg_uri(small)


def _photograph(data: bytes, size: tuple[int, ...]) -> np.ndarray:
    """Pixels as the mask was drawn on them: as stored, or turned by EXIF where only that gives the mask's size."""
    stored = shards.decode_image(data)
    if stored.shape[:2] == size:
        return stored
    return shards.decode_image(data, int(shards.open_image(data).getexif().get(ORIENTATION, 1)))


def _grey(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("L"))
