"""COCO polygons as donors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from unforge.datasets import coco


def annotations(*segmentations: object) -> str:
    document = {
        "images": [{"id": 7, "file_name": "000000000007.jpg", "width": 48, "height": 32}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 10 - number, "image_id": 7, "category_id": 3, "segmentation": segmentation, "iscrowd": 0}
            for number, segmentation in enumerate(segmentations)
        ],
    }
    document["annotations"].append({"id": 99, "image_id": 8, "category_id": 3, "segmentation": [[0, 0, 9, 0, 9, 9]]})
    return json.dumps(document)


def test_polygons_are_rasterised_at_the_photographs_size(tree):
    rectangle = [[4, 2, 20, 2, 20, 10, 4, 10]]
    two = [[0, 0, 5, 0, 5, 5, 0, 5], [30, 20, 40, 20, 40, 30, 30, 30]]
    crowd = {"counts": [0, 5], "size": [32, 48]}
    root = tree(
        "val2017/000000000007.jpg",
        contents={"annotations/instances_val2017.json": annotations(rectangle, two, crowd, [[1, 1]])},
    )
    objects = list(coco.polygons(root))
    assert [(path.name, name) for path, name, _ in objects] == [("000000000007.jpg", "cat")] * 2
    first, second = (mask for _, _, mask in objects)  # by annotation id: the later in the file has the lower id
    assert first.shape == second.shape == (32, 48)
    truth = np.zeros((32, 48), bool)
    truth[2:11, 4:21] = True
    assert (second == truth).all()
    assert first[2, 2]
    assert first[25, 35]
    assert not first[10, 10]
    assert [found.source for found in coco.find(root)] == [("coco:000000000007",)]


def test_missing_annotations_say_what_is_expected(tree):
    root = tree("val2017/000000000007.jpg", contents={"annotations/instances_x.json": "{}"})
    with pytest.raises(ValueError, match="lacks annotations, categories, images"):
        list(coco.polygons(root))
    (root / "annotations" / "instances_x.json").unlink()
    with pytest.raises(ValueError, match="instances_"):
        list(coco.polygons(root))


@pytest.mark.real_data
def test_real_polygons_have_the_annotated_areas(real_data):
    root = real_data / "coco_val100"
    document = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    names = {image["id"]: image["file_name"] for image in document["images"]}
    there = {path.name for path in root.rglob("*.jpg")}
    wanted = [
        item
        for item in sorted(document["annotations"], key=lambda item: item["id"])
        if isinstance(item["segmentation"], list) and names.get(item["image_id"]) in there
    ]
    objects = list(coco.polygons(root))
    assert len(there) == 100
    assert 0 <= len(wanted) - len(objects) <= 2
    by_image: dict[str, list[float]] = {}
    for path, _, mask in objects:
        with Image.open(path) as image:
            assert mask.shape == image.size[::-1]
        by_image.setdefault(path.name, []).append(float(mask.sum()))
    annotated: dict[str, float] = {}
    for item in wanted:
        annotated[names[item["image_id"]]] = annotated.get(names[item["image_id"]], 0) + item["area"]
    ratios = [sum(areas) / annotated[name] for name, areas in by_image.items() if annotated[name] > 2000]
    assert len(ratios) > 80
    assert 0.97 < float(np.median(ratios)) < 1.05
