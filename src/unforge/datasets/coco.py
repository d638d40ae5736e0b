"""COCO photographs, as real images that no generator made; and their object polygons, shapes for masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unforge.datasets import layout
from unforge.types import Card, Found, Views

if TYPE_CHECKING:
    import numpy as np

VERSION = "2"

CARD = Card(
    name="COCO instances (val2017)",
    images={"authentic": 5000},
    licence="annotations CC-BY-4.0; photographs under Flickr terms",
    redistribute=False,
    source="Lin et al.: Microsoft COCO, ECCV 2014; cocodataset.org.",
    layout="val2017/*.jpg and annotations/instances_val2017.json (any instances_*.json with its folder of images)",
    defects=("crowd annotations are run-length coded and no single object: left out",),
)

STAND_IN = Views(splits={"val": "val", "test": "test"}, quality=(90, 98))
"""Views of photographs that nothing was trained on. The three pools differ in their JPEG quality alone: here that of
photographs as they were uploaded. They bring no polygons."""


def find(root: Path) -> Iterator[Found]:
    """The photographs, all authentic; `val` (calibration) or `test` by the hash of the photograph's number."""
    for path in layout.files(root):
        if layout.is_image(path):
            found = layout.authentic(root, path, source=layout.coco_ids(layout.stem(path), "coco"))
            yield layout.held_out(found, "coco")


@dataclass(frozen=True, kw_only=True)
class Outline:
    """An annotated object."""

    id: int
    """Of the annotation; unique in its file."""
    image: Path
    category: str
    polygons: list[list[float]]
    """Each x, y, x, y, ... in pixels."""
    width: int
    height: int
    """Of the photograph, as its annotations say."""


def tables(root: Path) -> list[str]:
    """The files of instance annotations below `root`."""
    names = ((path, path.rsplit("/", 1)[-1]) for path in layout.files(root))
    return [path for path, name in names if name.startswith("instances_") and name.endswith(".json")]


def outlines(root: Path) -> Iterator[Outline]:
    """Each object, by annotation id. Crowds and annotations whose image is not there are left out.

    A file of annotations is held in memory whole (val2017's takes some 200 MB). ValueError when there is no
    `instances_*.json` or it lacks a field.
    """
    images = {path.rsplit("/", 1)[-1]: Path(root) / path for path in layout.files(root) if layout.is_image(path)}
    if not (found := tables(root)):
        raise ValueError(f"no annotations/instances_*.json below {root}; expected: {CARD.layout}")
    for table in found:
        document = json.loads((Path(root) / table).read_text(encoding="utf-8"))
        missing = {"images", "annotations", "categories"} - set(document)
        if missing:
            raise ValueError(f"{table} lacks {', '.join(sorted(missing))}")
        categories = {category["id"]: category["name"] for category in document["categories"]}
        photographs = {image["id"]: image for image in document["images"]}
        for annotation in sorted(document["annotations"], key=lambda annotation: annotation["id"]):
            image = photographs.get(annotation["image_id"])
            if image is None or image["file_name"] not in images or not isinstance(annotation["segmentation"], list):
                continue
            yield Outline(
                id=annotation["id"],
                image=images[image["file_name"]],
                category=categories.get(annotation["category_id"], ""),
                polygons=annotation["segmentation"],
                width=image["width"],
                height=image["height"],
            )


def polygons(root: Path) -> Iterator[tuple[Path, str, np.ndarray]]:
    """(image path, category name, mask (H, W) bool of the photograph's size) of each object, by annotation id.

    Objects of several polygons are one mask; empty polygons and what `outlines` leaves out are left out.
    ValueError as there.
    """
    for outline in outlines(root):
        mask = rasterise(outline.polygons, outline.width, outline.height)
        if mask.any():
            yield outline.image, outline.category, mask


def rasterise(polygons: list[list[float]], width: int, height: int) -> np.ndarray:
    """(height, width) bool: the union of polygons given as x, y, x, y, ... in pixels."""
    import numpy as np
    from PIL import Image, ImageDraw

    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        points = list(zip(polygon[0::2], polygon[1::2], strict=False))
        if len(points) >= 3:
            draw.polygon(points, fill=1, outline=1)
    return np.asarray(canvas, dtype=bool)
