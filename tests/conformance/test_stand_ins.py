"""Honesty of the stand-ins: what is trivial does not give the manipulation away.

Made from the training photographs, so that no test photograph is looked at. The bounds are about three standard
errors of what 200 images give.
"""

from __future__ import annotations

import dataclasses
import io
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unforge import datasets, forgeries, shards
from unforge.datasets import photos
from unforge.forgeries.steps import tiles
from unforge.types import Sample, StandIn

COUNT, SIZE = 200, 256


class Pool:
    """The photographs of the packages, in memory, with the one member that `Photographs` asks of a shard set."""

    def __init__(self) -> None:
        self.files = {sample.key: sample.image for sample in photos.photographs() if sample.split in ("train", "val")}
        self.rows: dict[str, dict[str, Any]] = {}
        for sample in photos.photographs():
            if sample.key in self.files:
                width, height = Image.open(io.BytesIO(sample.image)).size
                row = {"source": list(sample.source), "split": sample.split, "width": width, "height": height}
                self.rows[sample.key] = row
        self.image = cache(lambda key: shards.decode_image(self.files[key]))


def render(image: np.ndarray) -> np.ndarray:
    """In place of an autoencoder: half the resolution, and back."""
    half = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return cv2.resize(half, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def recipe(name: str) -> StandIn:
    """A dataset's own recipe, from training photographs, without controls."""
    own: StandIn = datasets.load(name).STAND_IN
    kinds = {kind: share for kind, share in own.kinds.items() if kind != "history"}
    total = sum(kinds.values())
    return dataclasses.replace(own, split="train", kinds={kind: share / total for kind, share in kinds.items()})


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool()


@pytest.fixture(scope="module", params=["casia2", "def12k", "miml", "pretraining", "sidset"])
def samples(request: pytest.FixtureRequest, pool: Pool) -> list[Sample]:
    return list(forgeries.stand_in(recipe(request.param), pool, COUNT, SIZE, 11, request.param, render))


def auc(mask: np.ndarray, values: np.ndarray) -> float:
    """Of every fourth pixel."""
    return float(roc_auc_score(mask[::2, ::2].ravel(), values[::2, ::2].ravel()))


def tampered(samples: list[Sample]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (shards.decode_image(s.image), shards.decode_mask(s.mask))
        for s in samples
        if s.mask is not None and s.kind != "generated"
    ]


def test_an_edge_filter_stays_near_chance(samples: list[Sample]) -> None:
    values = []
    for image, mask in tampered(samples):
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        edges = np.hypot(cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1))
        values.append(auc(mask, edges))
    assert 0.4 < np.mean(values) < 0.6


def test_brightness_and_saturation_stay_near_chance(samples: list[Sample]) -> None:
    values = []
    for image, mask in tampered(samples):
        colour = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        values.append([auc(mask, colour[..., channel]) for channel in (1, 2)])
    assert np.abs(np.mean(values, axis=0) - 0.5).max() < 0.1


def test_the_centre_says_nothing(samples: list[Sample]) -> None:
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    prior = -np.hypot(x, y)
    values = [auc(mask, prior) for _, mask in tampered(samples)]
    assert 0.4 < np.mean(values) < 0.6


@pytest.mark.parametrize("classifier", ["linear", "trees"])
def test_a_header_only_classifier_stays_near_chance(samples: list[Sample], classifier: str) -> None:
    assert 0.35 < told_by_headers(samples, classifier) < 0.65


def told_by_headers(samples: list[Sample], classifier: str) -> float:
    """Area under the curve of a classifier that sees file size, tables and format alone; folds by photograph."""
    rows = []
    for sample in samples:
        image = Image.open(io.BytesIO(sample.image))
        tables = getattr(image, "quantization", None) or {}
        luma, chroma = tables.get(0, [0] * 64), tables.get(1, [0] * 64)
        rows.append([len(sample.image), *image.size, sum(luma), sum(chroma), luma[0], luma[5], len(image.info)])
    model: Any = make_pipeline(StandardScaler(), LogisticRegression())
    if classifier == "trees":
        model = HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=6, random_state=0)
    labels = np.array([sample.label for sample in samples])
    score = cross_val_predict(
        model,
        np.array(rows, float),
        labels,
        groups=[sample.source[0] for sample in samples],
        cv=GroupKFold(5),
        method="predict_proba",
    )[:, 1]
    return float(roc_auc_score(labels, score))


class Small:
    """In place of what a prior samples: crops of photographs at 32 px, smoothed as a small decoder leaves them."""

    def __init__(self, pool: Pool, count: int = 200) -> None:
        chosen = forgeries.photographs(recipe("opensdid_train"), pool, 64)
        rng, keys = np.random.default_rng(0), list(chosen.rows)
        self.rows: dict[str, dict[str, Any]] = {}
        self.images: dict[str, np.ndarray] = {}
        for i in range(count):
            key, photo = f"small-{i}", keys[i % len(keys)]
            self.images[key] = render(
                cv2.resize(chosen.crop(photo, 64, rng)[0], (32, 32), interpolation=cv2.INTER_AREA)
            )
            self.rows[key] = {"source": [key], "split": chosen.rows[photo]["split"]}

    def image(self, key: str) -> np.ndarray:
        return self.images[key]


@pytest.mark.parametrize("classifier", ["linear", "trees"])
def test_sampled_images_are_not_told_by_their_headers(pool: Pool, classifier: str) -> None:
    """Whole images against photographs: enlarged by themselves they are told by their size alone."""

    def tiled(image: np.ndarray) -> np.ndarray:
        return tiles.blended(image, lambda batch: np.stack([render(tile) for tile in batch]).astype(np.float32), 32, 7)

    kinds = {"authentic": 0.5, "generated": 0.5}
    own = dataclasses.replace(recipe("opensdid_train"), kinds=kinds)
    made = list(forgeries.stand_in(own, pool, COUNT, SIZE, 11, "opensdid", tiled, Small(pool)))
    assert 0.25 < told_by_headers(made, classifier) < 0.75


def test_photographs_and_quality_are_the_same_for_both_classes(samples: list[Sample]) -> None:
    for values in (
        {label: {s.source[0] for s in samples if s.label == label} for label in (0, 1)},
        {label: {s.extension for s in samples if s.label == label} for label in (0, 1)},
    ):
        assert values[0] == values[1]
    sigmas = {label: np.mean([s.meta["sensor_sigma"] for s in samples if s.label == label]) for label in (0, 1)}
    assert abs(sigmas[0] - sigmas[1]) < 0.3


def test_no_photograph_is_in_both_splits(samples: list[Sample]) -> None:
    used = {split: {name for s in samples if s.split == split for name in s.source} for split in ("train", "val")}
    assert used["train"]
    assert used["val"]
    assert not used["train"] & used["val"]


FORGED = [name for name in datasets.names() if isinstance(getattr(datasets.load(name), "STAND_IN", None), StandIn)]


@pytest.mark.parametrize("name", FORGED)
def test_every_recipe_can_be_followed_exactly(name: str, pool: Pool) -> None:
    own = recipe(name)
    photographs = forgeries.photographs(own, pool, 128)
    for item in forgeries.plan(own, photographs, 6, 0, name):
        draft = forgeries.draft(own, photographs, item, 128, 0, render)
        if item.kind == "authentic":
            assert np.array_equal(draft.before, draft.after)
            assert not draft.mask.any()
            continue
        margin = int(np.ceil(3 * draft.meta["forgery"]["feather"]))
        near = cv2.dilate(draft.mask.astype(np.uint8), np.ones((2 * margin + 1,) * 2, np.uint8)) > 0
        assert np.array_equal(draft.before[~near], draft.after[~near])
        assert (draft.before != draft.after).any(axis=-1)[draft.mask].mean() > 0.3
        if item.kind == "generated":
            assert draft.mask.all()
            continue
        assert 0.3 * own.area[0] < draft.mask.mean() < 1.2 * own.area[1]
