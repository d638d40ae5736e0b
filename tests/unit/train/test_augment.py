from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from unforge.train import augment

SIZE = 16


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _picture(height: int = 48, width: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """An image that says where each pixel came from: red is the row, green the column."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y, x, 3 * y + 2 * x], axis=2).astype(np.uint8)
    return image, (y > height // 2) & (x < width // 3)


@pytest.fixture(params=sorted(augment.OPERATIONS))
def operation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_operation_keeps_the_contract(operation: str) -> None:
    image, mask = _picture()
    untouched = image.copy(), mask.copy()
    for seed in range(30):
        changed, truth = augment.OPERATIONS[operation](image, mask, _rng(seed), SIZE)
        again, truth_again = augment.OPERATIONS[operation](image, mask, _rng(seed), SIZE)
        assert changed.dtype == np.uint8
        assert truth.dtype == np.bool_
        assert changed.shape == (*truth.shape, 3)
        assert np.array_equal(changed, again)
        assert np.array_equal(truth, truth_again)
    assert np.array_equal(image, untouched[0])
    assert np.array_equal(mask, untouched[1])


def test_crop_lies_on_the_jpeg_grid_and_reaches_every_place() -> None:
    image, mask = _picture()
    corners = set()
    for seed in range(200):
        part, truth = augment.crop(image, mask, _rng(seed), SIZE)
        y, x = int(part[0, 0, 0]), int(part[0, 0, 1])
        assert np.array_equal(part, image[y : y + SIZE, x : x + SIZE])
        assert np.array_equal(truth, mask[y : y + SIZE, x : x + SIZE])
        corners.add((y, x))
    assert corners == {(y, x) for y in (0, 8, 16, 24, 32) for x in (0, 8, 16, 24)}


def test_crop_continues_a_small_image_by_its_edge() -> None:
    image, mask = _picture(10, 40)
    part, truth = augment.crop(image, np.ones_like(mask), _rng(), SIZE)
    assert part.shape == (SIZE, SIZE, 3)
    assert np.array_equal(part[10:, :, 0], np.full((6, SIZE), 9))
    assert truth[:10].all()
    assert not truth[10:].any()


def test_dihedral_gives_all_eight_alike() -> None:
    image, mask = _picture(8, 8)
    seen: dict[bytes, int] = {}
    for seed in range(800):
        turned, truth = augment.dihedral(image, mask, _rng(seed), SIZE)
        y, x = turned[..., 0], turned[..., 1]
        assert np.array_equal(truth, mask[y, x])
        seen[turned.tobytes()] = seen.get(turned.tobytes(), 0) + 1
    assert len(seen) == 8
    assert all(60 < count < 140 for count in seen.values())


@pytest.mark.parametrize(("name", "axis"), [("flip_horizontal", 1), ("flip_vertical", 0)])
def test_flips_happen_half_of_the_time(name: str, axis: int) -> None:
    image, mask = _picture()
    flipped = 0
    for seed in range(200):
        turned, truth = augment.OPERATIONS[name](image, mask, _rng(seed), SIZE)
        if np.array_equal(turned, np.flip(image, axis)):
            assert np.array_equal(truth, np.flip(mask, axis))
            flipped += 1
        else:
            assert turned is image
    assert 70 < flipped < 130


def test_rotate90_turns_three_eighths() -> None:
    image, mask = _picture(8, 8)
    turns = [0, 0, 0, 0]
    for seed in range(400):
        turned, truth = augment.rotate90(image, mask, _rng(seed), SIZE)
        quarter = next(k for k in range(4) if np.array_equal(turned, np.rot90(image, k)))
        assert np.array_equal(truth, np.rot90(mask, quarter))
        turns[quarter] += 1
    assert 200 < turns[0] < 300  # 5 / 8 of 400 is 250
    assert all(25 < count < 80 for count in turns[1:])


def test_scale_is_isotropic_between_80_and_120_percent() -> None:
    image, mask = _picture(100, 200)
    factors = []
    for seed in range(100):
        scaled, truth = augment.scale(image, mask, _rng(seed), SIZE)
        assert scaled.shape[:2] == truth.shape
        factors.append(scaled.shape[0] / 100)
        assert scaled.shape[1] / 200 == pytest.approx(factors[-1], abs=0.006)
        assert truth.mean() == pytest.approx(mask.mean(), abs=0.02)
    assert min(factors) < 0.85
    assert max(factors) > 1.15
    assert all(0.8 <= f <= 1.2 for f in factors)


def _fired(name: str, seeds: int = 400) -> list[tuple[np.ndarray, np.ndarray]]:
    image, mask = _picture(40, 60)
    results = [augment.OPERATIONS[name](image, mask, _rng(seed), SIZE) for seed in range(seeds)]
    return [(changed, truth) for changed, truth in results if changed is not image]


def test_copy_move_copies_a_rectangle_and_marks_it_one_time_in_ten() -> None:
    image, mask = _picture(40, 60)
    fired = _fired("copy_move")
    assert 20 < len(fired) < 65
    for changed, truth in fired:
        assert np.array_equal(truth & mask, mask)
        moved = np.any(changed != image, axis=2)
        assert not (moved & ~truth).any()
        y, x = np.nonzero(moved)
        # the copy is a shift: row and column are off by the same amount everywhere
        assert len(np.unique(changed[y, x, 0].astype(int) - y)) <= 1
        assert len(np.unique(changed[y, x, 1].astype(int) - x)) <= 1


def test_inpaint_fills_a_rectangle_and_marks_it_one_time_in_ten() -> None:
    image, mask = _picture(40, 60)
    fired = _fired("inpaint")
    assert 20 < len(fired) < 65
    for changed, truth in fired:
        assert not (np.any(changed != image, axis=2) & ~truth).any()
        new = truth & ~mask
        assert new.any()


def test_brightness_contrast_is_one_line_for_all_values() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    seen = []
    for seed in range(100):
        changed, _ = augment.brightness_contrast(ramp, np.zeros((1, 256), bool), _rng(seed), SIZE)
        values = changed[0, :, 0].astype(float)
        assert np.array_equal(changed[0, :, 0], changed[0, :, 2])
        inside = (values > 0) & (values < 255)
        slope, offset = np.polyfit(np.arange(256)[inside], values[inside], 1)
        assert 0.899 <= slope <= 1.101
        assert abs(offset) <= 26.5
        seen.append((slope, offset))
    assert np.ptp([s for s, _ in seen]) > 0.15
    assert np.ptp([o for _, o in seen]) > 40


def test_jpeg_is_pillows_at_one_of_the_qualities_one_time_in_five() -> None:
    image, mask = _picture(40, 60)
    fired = _fired("jpeg")
    assert 50 < len(fired) < 115
    possible = set()
    for quality in range(70, 101):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, format="JPEG", quality=quality, subsampling="4:2:0")
        possible.add(np.asarray(Image.open(stream)).tobytes())
    assert all(changed.tobytes() in possible for changed, _ in fired)
    assert len({changed.tobytes() for changed, _ in fired}) > 15
    assert all(np.array_equal(truth, mask) for _, truth in fired)


def test_blur_is_opencvs_with_one_of_three_kernels_one_time_in_five() -> None:
    image, mask = _picture(40, 60)
    fired = _fired("blur")
    assert 50 < len(fired) < 115
    possible = {cv2.GaussianBlur(image, (k, k), 0).tobytes() for k in (3, 5, 7)}
    assert {changed.tobytes() for changed, _ in fired} == possible
    assert all(np.array_equal(truth, mask) for _, truth in fired)


def test_resize_takes_the_whole_image() -> None:
    image, mask = _picture(48, 40)
    small, truth = augment.resize(image, mask, _rng(), SIZE)
    assert small.shape == (SIZE, SIZE, 3)
    assert np.array_equal(small, cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR))
    assert truth.mean() == pytest.approx(mask.mean(), abs=0.05)


def test_apply_goes_through_the_names_in_order() -> None:
    image, mask = _picture()
    rng = _rng(3)
    expected = augment.dihedral(*augment.crop(image, mask, rng, SIZE), rng, SIZE)
    result = augment.apply(("crop", "dihedral"), image, mask, _rng(3), SIZE)
    assert all(np.array_equal(a, b) for a, b in zip(result, expected, strict=True))
    with pytest.raises(ValueError, match="swirl"):
        augment.apply(("swirl",), image, mask, _rng(), SIZE)
