"""The schedule and the seven perturbations of the augmented inverse decoder."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from tests.unit.provenance import toys
from unforge import seeds
from unforge.provenance import augment
from unforge.provenance.config import LEVELS, SCHEDULE


def picture(size: int = 64, place: int = 0) -> np.ndarray:
    return toys.photographs(size)[place].permute(1, 2, 0).mul(255).round().byte().numpy()


def rng(key: str = "image") -> np.random.Generator:
    return seeds.generator(0, key, "test")


def test_strengths_have_their_share_of_the_epochs() -> None:
    assert sum(length for _, length in SCHEDULE) == 50
    for steps in (50, 1000, 6250):
        found = Counter(augment.strength(step, steps) for step in range(steps))
        assert found == {"none": steps / 10, "weak": steps / 10, "medium": 2 * steps / 5, "strong": 2 * steps / 5}
    assert [augment.strength(step, 7) for step in range(7)] == ["none", "weak", *["medium"] * 3, *["strong"] * 2]
    for step, steps in ((5, 5), (-1, 5), (0, 0)):
        with pytest.raises(ValueError, match="step"):
            augment.strength(step, steps)


def test_half_of_the_images_are_perturbed_and_all_operations_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[tuple[str, float]] = Counter()
    for name in augment.OPERATIONS:
        spy = lambda image, level, rng, name=name: (calls.update([(name, level)]), image)[1]  # noqa: E731
        monkeypatch.setitem(augment.OPERATIONS, name, spy)
    image = picture()
    for i in range(7000):
        augment.perturbed(image, "medium", rng(f"{i}"))
    assert sum(calls.values()) == pytest.approx(3500, abs=150)
    by_name = Counter(name for name, _ in calls.elements())
    assert set(by_name) == {"jpeg", "blur", "noise", "brightness", "saturation", "resize", "contrast"}
    assert all(count == pytest.approx(500, abs=90) for count in by_name.values())
    assert {level for name, level in calls if name == "jpeg"} == {80, 75, 70, 65}
    assert all(level in LEVELS["medium"][name] for name, level in calls)


def test_no_strength_leaves_images_and_others_are_refused() -> None:
    image = picture()
    assert all(np.array_equal(augment.perturbed(image, "none", rng(f"{i}")), image) for i in range(20))
    with pytest.raises(ValueError, match=r"'huge'.*weak, medium, strong"):
        augment.perturbed(image, "huge", rng())


@pytest.mark.parametrize("name", sorted(augment.OPERATIONS))
def test_every_operation_changes_a_copy_and_repeats_itself(name: str) -> None:
    image = picture()
    before = image.copy()
    for strength, levels in LEVELS.items():
        for level in levels[name]:
            done = augment.OPERATIONS[name](image, level, rng())
            assert (done.shape, done.dtype) == (image.shape, np.uint8)
            assert np.array_equal(done, augment.OPERATIONS[name](image, level, rng()))
            assert np.array_equal(done, image) == (level == 1), (strength, level)
    assert np.array_equal(image, before)


def test_stronger_means_farther() -> None:
    image = picture().astype(float)
    for name in augment.OPERATIONS:
        errors = []
        for strength in LEVELS:
            levels = LEVELS[strength][name]
            done = [augment.OPERATIONS[name](picture(), levels[i % len(levels)], rng(f"{i}")) for i in range(12)]
            errors.append(np.mean([(image - one) ** 2 for one in done]))
        assert errors[0] < errors[1] < errors[2], name


@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_colours_are_pillows_but_for_rounding(name: str, enhance: type) -> None:
    for place in range(4):
        image = picture(place=place)
        for factor in (1.2, 1.7, 2.4):
            theirs = np.asarray(enhance(Image.fromarray(image)).enhance(factor)).astype(int)
            ours = augment.OPERATIONS[name](image, factor, rng()).astype(int)
            assert np.abs(ours - theirs).max() <= 2


def test_noise_has_its_sigma_on_the_unit_scale() -> None:
    grey = np.full((256, 256, 3), 128, np.uint8)
    done = augment.noise(grey, 0.04, rng()).astype(float)
    assert done.std() / 255 == pytest.approx(0.04, rel=0.02)


def test_blur_draws_its_sigma() -> None:
    image = picture()
    distance = [np.abs(augment.blur(image, 9, rng(f"{i}")).astype(float) - image).mean() for i in range(30)]
    assert min(distance) < 0.2 * max(distance)


def test_resize_is_antialiased() -> None:
    """A checkerboard of single pixels becomes grey, and is not sampled."""
    board = np.indices((32, 32)).sum(0) % 2 * 255
    image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    inside = augment.resize(image, 0.5, rng())[4:-4, 4:-4]
    assert inside.std() < 8
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), size=(16, 16), mode="bilinear", antialias=True
    )
    back = torch.nn.functional.interpolate(exact, size=(32, 32), mode="bilinear", antialias=True)
    difference = back[0].permute(1, 2, 0).numpy() - augment.resize(image, 0.5, rng())
    assert np.abs(difference).max() <= 2
