"""Tints, outlines and heat, against pictures small enough to check by hand."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from unforge.report import overlays


def square() -> np.ndarray:
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:6, 2:6] = True
    return mask


def test_outline_is_the_inner_boundary() -> None:
    expected = square()
    expected[3:5, 3:5] = False
    np.testing.assert_array_equal(overlays.outline(square()), expected)
    np.testing.assert_array_equal(overlays.outline(square(), width=2), square())
    assert not overlays.outline(np.ones((5, 5), dtype=bool)).any(), "the frame is no boundary"


def test_tint_mixes_colour_inside_and_leaves_the_rest() -> None:
    image = np.full((8, 8, 3), 100, dtype=np.uint8)
    shown = overlays.tint(image, square(), (200, 0, 50), opacity=0.5)
    assert shown[3, 3].tolist() == [150, 50, 75]
    assert shown[0, 0].tolist() == [100, 100, 100]
    assert image[3, 3].tolist() == [100, 100, 100], "the input is not changed"


def test_overlay_paints_above_one_half_strictly() -> None:
    image = np.full((8, 8, 3), 100, dtype=np.uint8)
    untouched = overlays.overlay(image, np.full((8, 8), 0.5))
    np.testing.assert_array_equal(untouched, image)
    shown = overlays.overlay(image, square().astype(float), truth=np.roll(square(), 2, axis=1))
    assert shown[2, 2].tolist() == list(overlays.PREDICTED)
    assert shown[2, 7].tolist() == list(overlays.TRUTH)
    with pytest.raises(ValueError, match=r"probability is \(4, 4\)"):
        overlays.overlay(image, np.zeros((4, 4)))


def test_heat_is_brightest_at_the_largest_weight_and_marks_the_anchor() -> None:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    weights = np.zeros((4, 4))
    weights[0, 3] = 0.02
    shown = overlays.heat(image, weights).astype(int).sum(axis=-1)
    row, column = np.unravel_index(int(shown.argmax()), shown.shape)
    assert row < 16 <= 48 <= column
    marked = overlays.heat(image, weights, anchor=(0.0, 1.0))
    assert marked[63, 0].tolist() == [255, 255, 255]
    assert overlays.heat(image, np.zeros((4, 4))).shape == (64, 64, 3)


def test_thumbnail_keeps_the_shape_and_never_enlarges() -> None:
    image = np.zeros((100, 50, 3), dtype=np.uint8)
    assert overlays.thumbnail(image, 20).shape == (20, 10, 3)
    assert overlays.thumbnail(image, 200) is image
    checker = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert set(np.unique(overlays.thumbnail(checker, 10, sharp=True))) <= {0, 255}


def test_data_uris_are_stable_pictures() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for make, start in ((overlays.jpeg_uri, b"\xff\xd8"), (overlays.png_uri, b"\x89PNG")):
        uri = make(image)
        assert uri == make(image)
        assert base64.b64decode(uri.partition(",")[2]).startswith(start)
