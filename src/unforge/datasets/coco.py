"""COCO photographs, as real images that no generator made; and their object polygons, donors for splices."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


def polygons(root: Path) -> Iterator[tuple[Path, str, np.ndarray]]:
    """(image path, category name, mask (H, W) bool of the photograph's size) of each object, by annotation id.

    Objects of several polygons are one mask; crowds, empty polygons and annotations whose image is not
    there are left out. ValueError when there is no `instances_*.json` or it lacks a field.
    """
    listing = layout.files(root)
    images = {path.rsplit("/", 1)[-1]: Path(root) / path for path in listing if layout.is_image(path)}
    tables = [path for path in listing if path.rsplit("/", 1)[-1].startswith("instances_") and path.endswith(".json")]
    if not tables:
        raise ValueError(f"no annotations/instances_*.json below {root}; expected: {CARD.layout}")
    for table in tables:
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
            mask = rasterise(annotation["segmentation"], image["width"], image["height"])
            if mask.any():
                yield images[image["file_name"]], categories.get(annotation["category_id"], ""), mask


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
