"""Dynamic tiling, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unforge.backbones import tiles


@pytest.mark.parametrize(
    ("height", "width", "most", "expected"),
    [
        (448, 448, 12, (1, 1)),  # exactly one tile: 2x2 would need more than 401,408 pixels
        (600, 600, 12, (1, 1)),  # 360,000 pixels: less than half of 2x2's 802,816
        (700, 700, 12, (2, 2)),  # 490,000: more than half of 2x2, less than half of 3x3's 1,806,336
        (1000, 1000, 12, (3, 3)),
        (1000, 1000, 6, (2, 2)),
        (400, 800, 12, (2, 1)),  # 4x2 has the same ratio, but 320,000 pixels are not half of 1,605,632
        (1000, 2000, 12, (4, 2)),
        (800, 400, 12, (1, 2)),
        (300, 400, 12, (4, 3)),  # 4:3 is nearest in ratio, however small the image
        (300, 400, 4, (1, 1)),  # 1.333: 1 is nearer than 2 or 3/1, and 3/2 needs six tiles
        (1, 1000, 12, (12, 1)),
        (1000, 1, 3, (1, 3)),
    ],
)
def test_the_grid_of_the_nearest_ratio(height: int, width: int, most: int, expected: tuple[int, int]) -> None:
    assert tiles.choose(height, width, 448, most) == expected


def test_grids_hold_every_shape_once() -> None:
    found = tiles.grids(4)
    assert found == ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1))
    assert tiles.grids(4, 3) == ((1, 3), (3, 1), (1, 4), (2, 2), (4, 1))


def test_tiles_row_by_row_then_the_thumbnail() -> None:
    image = torch.zeros(3, 8, 12)
    image[0, :4, 8:] = 1.0  # the tile of the first row's third column
    image[1, 4:, :4] = 1.0  # of the second row's first
    cut = tiles.cut(image, 4, 12)
    assert cut.shape == (7, 3, 4, 4)
    assert cut[:6, 0].mean((1, 2)).tolist() == [0, 0, 1, 0, 0, 0]
    assert cut[:6, 1].mean((1, 2)).tolist() == [0, 0, 0, 1, 0, 0]
    assert torch.equal(cut[6], tiles.stretched(image, 4, 4))
    assert len(tiles.cut(image, 4, 12, thumbnail=False)) == 6


def test_one_tile_has_no_thumbnail() -> None:
    image = torch.rand(3, 5, 5)
    assert tiles.cut(image, 4, 1).shape == (1, 3, 4, 4)


def test_stretching_is_pillows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 93, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    found = (tiles.stretched(image, 28, 42) * 255).permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(pixels).resize((42, 28), Image.Resampling.BICUBIC))
    assert np.abs(found - expected).max() < 1.5  # Pillow rounds between the two directions


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="0x5"):
        tiles.choose(0, 5, 448, 12)
    with pytest.raises(ValueError, match="0 tiles"):
        tiles.choose(5, 5, 448, 0)
