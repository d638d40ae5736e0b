"""Each forgery: what it changes, what it leaves alone, what it reports."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from unforge import forgeries, seeds
from unforge.forgeries import copy_move, generated, history, regenerated, removal, splice
from unforge.forgeries.steps import camera
from unforge.types import StandIn

IN_REGIONS = [kind for kind in forgeries.names() if kind != "generated"]
RECIPE = StandIn(kinds={"splice": 1.0}, split="test", area=(0.05, 0.2))


def render(image: np.ndarray) -> np.ndarray:
    return (255 - image).astype(np.uint8)


def rng(seed: int) -> np.random.Generator:
    return seeds.generator(seed, "image", "test")


def test_names_are_the_files() -> None:
    assert forgeries.names() == ["copy_move", "generated", "history", "regenerated", "removal", "splice"]
    with pytest.raises(ValueError, match="copy_move"):
        forgeries.load("copymove")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", IN_REGIONS)
def test_only_the_region_changes(kind: str, seed: int, image: np.ndarray, donor: np.ndarray) -> None:
    module, before = forgeries.load(kind), image.copy()
    forged, mask, done = module.forge(image, donor if module.DONOR else None, RECIPE, rng(seed), render)
    assert np.array_equal(image, before)
    assert forged.shape == image.shape
    assert forged.dtype == np.uint8
    assert mask.shape == image.shape[:2]
    assert mask.dtype == bool
    assert 0.015 < mask.mean() < 0.23
    away = ndimage.distance_transform_cdt(~mask, "chessboard") > np.ceil(3 * done["feather"])
    assert np.array_equal(forged[away], image[away])
    inside = ndimage.distance_transform_cdt(mask, "chessboard") > np.ceil(3 * done["feather"])
    assert (forged[inside] != image[inside]).any(axis=-1).mean() > 0.5
    assert json.loads(json.dumps(done)) == done


@pytest.mark.parametrize("kind", IN_REGIONS)
def test_without_feather_the_mask_is_exact(kind: str, image: np.ndarray, donor: np.ndarray) -> None:
    module, recipe = forgeries.load(kind), dataclasses.replace(RECIPE, feather=(0.0, 0.0))
    forged, mask, _ = module.forge(image, donor if module.DONOR else None, recipe, rng(0), render)
    changed = (forged != image).any(axis=-1)
    assert not (changed & ~mask).any()
    assert (changed & mask).sum() > 0.5 * mask.sum()


@pytest.mark.parametrize("module", [splice, history, generated])
def test_a_donor_is_asked_for(module: object, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="donor"):
        module.forge(image, None, RECIPE, rng(0))  # type: ignore[attr-defined]


def test_regenerated_asks_for_an_autoencoder_and_uses_it(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="render"):
        regenerated.forge(image, None, RECIPE, rng(0))
    recipe = dataclasses.replace(RECIPE, feather=(0.0, 0.0))
    forged, mask, _ = regenerated.forge(image, None, recipe, rng(0), render)
    assert np.array_equal(forged[mask], 255 - image[mask])


def test_generated_is_the_rendered_scene_under_a_camera(image: np.ndarray, donor: np.ndarray) -> None:
    with pytest.raises(ValueError, match="render"):
        generated.forge(image, donor, RECIPE, rng(0))
    sigmas = set()
    for seed in range(6):
        made, mask, done = generated.forge(image, donor, RECIPE, rng(seed), render)
        assert mask.all()
        assert mask.shape == image.shape[:2]
        assert json.loads(json.dumps(done)) == done
        difference = made.astype(float) - (255.0 - donor)
        assert abs(difference.mean()) < 1
        assert 0.5 * done["sensor_sigma"] < difference.std() < 2 * done["sensor_sigma"] + 2
        sigmas.add(done["sensor_sigma"])
    assert len(sigmas) == 6


def test_copies_hold_what_their_matrix_says(image: np.ndarray) -> None:
    recipe = dataclasses.replace(RECIPE, feather=(0.0, 0.0))
    counts = set()
    for seed in range(20):
        forged, mask, done = copy_move.forge(image, None, recipe, rng(seed))
        counts.add(len(done["copies"]))
        if len(done["copies"]) > 1:
            continue
        matrix = np.array(done["copies"][0]["matrix"])
        rows, columns = np.nonzero(mask)
        x, y = np.linalg.solve(matrix[:, :2], np.stack([columns, rows]) - matrix[:, 2:])
        within = (x > 1) & (x < 126) & (y > 1) & (y < 126)
        for channel in range(3):
            expected = ndimage.map_coordinates(image[..., channel].astype(float), [y[within], x[within]], order=1)
            assert np.abs(forged[rows, columns, channel][within] - expected).mean() < 1.5
        assert abs(np.linalg.det(matrix[:, :2])) == pytest.approx(done["copies"][0]["scaled"] ** 2, rel=1e-2)
    assert counts >= {1, 2}


def test_removal_makes_the_region_smoother(image: np.ndarray) -> None:
    noisy = camera.sensor_noise(image, 4.0, rng(3))
    forged, mask, done = removal.forge(noisy, None, RECIPE, rng(0))
    core = ndimage.binary_erosion(mask, iterations=8)
    assert done["algorithm"] in {"telea", "navier_stokes"}
    assert (
        ndimage.laplace(forged[..., 1].astype(float))[core].std()
        < 0.5 * ndimage.laplace(noisy[..., 1].astype(float))[core].std()
    )


def test_history_keeps_the_content(image: np.ndarray) -> None:
    noisy = camera.sensor_noise(image, 3.0, rng(3))
    forged, mask, _ = history.forge(noisy, image, RECIPE, rng(0))
    difference = forged[mask].astype(float) - noisy[mask]
    assert 0.5 < np.abs(difference).mean() < 10
    assert abs(difference.mean()) < 0.6
    assert np.corrcoef(forged[mask].ravel(), noisy[mask].ravel())[0, 1] > 0.95


def test_splice_shows_the_donor(image: np.ndarray, donor: np.ndarray) -> None:
    recipe = dataclasses.replace(RECIPE, feather=(0.0, 0.0))
    for seed in range(8):
        forged, mask, done = splice.forge(image, donor, recipe, rng(seed))
        factor = done["enlarged"]
        assert 1.0 <= factor <= 1.42
        shown = ndimage.zoom(donor.astype(float), (factor, factor, 1), order=1)[:128, :128]
        assert np.corrcoef(forged[mask][:, 1], shown[mask][:, 1])[0, 1] > 0.85


def test_an_outlined_object_is_cut_out(image: np.ndarray, donor: np.ndarray) -> None:
    outline = np.zeros((128, 128), bool)
    outline[20:60, 30:100] = True
    recipe = dataclasses.replace(RECIPE, feather=(0.0, 0.0), area=(0.1, 0.1))
    forged, mask, done = splice.cut_out(image, donor, outline, recipe, rng(1))
    assert np.array_equal(forged[~mask], image[~mask])
    assert mask.sum() <= 0.105 * mask.size
    assert done["enlarged"] == pytest.approx(np.sqrt(0.1 * 128**2 / outline.sum()), rel=1e-3)
    with pytest.raises(ValueError, match="cuts nothing"):
        splice.cut_out(image, donor, np.zeros_like(outline), recipe, rng(1))


@pytest.mark.real_data
def test_coco_objects_can_be_cut_out(real_data: Path, image: np.ndarray) -> None:
    from unforge import shards
    from unforge.datasets import coco

    done = 0
    for path, _, outline in coco.polygons(real_data / "coco_val100"):
        if 0.02 < outline.mean() < 0.5:
            donor = shards.decode_image(Path(path).read_bytes())
            forged, mask, _ = splice.cut_out(image, donor, outline, RECIPE, rng(done))
            assert mask.any()
            assert (forged[mask] != image[mask]).any()
            done += 1
        if done == 5:
            break
    assert done == 5
