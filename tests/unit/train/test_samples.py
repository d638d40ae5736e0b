from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.train import fakes
from unforge.train.data import Arrays, Samples


def _equal(left: Arrays, right: Arrays) -> bool:
    arrays = all(np.array_equal(getattr(left, n), getattr(right, n)) for n in ("image", "mask", "label"))
    return arrays and (left.key, left.unit, left.source) == (right.key, right.unit, right.source)


def test_a_sample_depends_on_step_and_index_only() -> None:
    whole = fakes.samples().load(3, 0, 8)
    other = fakes.samples()
    other.load(9, 0, 3)
    half = other.load(3, 4, 4)
    assert half.key == whole.key[4:]
    assert np.array_equal(half.image, whole.image[4:])
    assert np.array_equal(half.mask, whole.mask[4:])
    assert _equal(fakes.samples().load(3, 0, 8), whole)
    assert not _equal(fakes.samples().load(4, 0, 8), whole)
    assert not _equal(fakes.samples(seed=1).load(3, 0, 8), whole)


def test_members_are_drawn_by_weight_and_their_images_alike() -> None:
    members = [fakes.member(fakes.FakeSet("a", 2), 3.0), fakes.member(fakes.FakeSet("bb", 40), 1.0)]
    drawn = Samples(members, operations=("crop",), size=16, seed=0).load(0, 0, 4000).key
    counts = {name: drawn.count(name) for name in set(drawn)}
    # 4000 draws: standard deviation of a binomial count is at most 32
    assert counts["a0"] == pytest.approx(1500, abs=120)
    assert counts["a1"] == pytest.approx(1500, abs=120)
    assert sum(n for name, n in counts.items() if name.startswith("bb")) == pytest.approx(1000, abs=110)
    assert len(counts) == 42


def test_images_are_kept_while_there_is_room_and_are_the_same_without() -> None:
    fake, other = fakes.FakeSet("a", 4), fakes.FakeSet("a", 4)
    one_image = 24 * 24 * 4
    kept = Samples([fakes.member(fake)], operations=("crop",), size=16, seed=0)
    tight = Samples([fakes.member(other)], operations=("crop",), size=16, seed=0, cache_bytes=2 * one_image)
    assert _equal(kept.load(0, 0, 100), tight.load(0, 0, 100))
    assert fake.reads == 4
    assert len(tight.cache) == 2
    assert 4 < other.reads < 100


def test_memory_is_divided_among_processes() -> None:
    fake = fakes.FakeSet("a", 4)
    data = Samples([fakes.member(fake)], operations=("crop",), size=16, seed=0, workers=2, cache_bytes=4 * 24 * 24 * 4)
    data.load(0, 0, 100)
    assert len(data.cache) == 2


def test_an_operation_that_manipulates_makes_the_image_manipulated() -> None:
    data = Samples([fakes.member(fakes.FakeSet("a", 3, label=0))], operations=("crop", "copy_move"), size=16, seed=0)
    batch = data.load(0, 0, 200)
    assert np.array_equal(batch.label, batch.mask.any(axis=(1, 2)).astype(np.int64))
    assert 5 < batch.label.sum() < 40  # one in ten


def test_a_crop_that_misses_the_mask_keeps_the_images_label() -> None:
    data = Samples([fakes.member(fakes.FakeSet("a", 8))], operations=("crop",), size=8, seed=0)
    batch = data.load(0, 0, 200)
    assert not batch.mask.any(axis=(1, 2)).all()
    assert batch.label.tolist() == [1] * 200


def test_batch_on_the_device() -> None:
    arrays = fakes.samples().load(0, 0, 4)
    batch = arrays.batch(torch.device("cpu"))
    assert batch.image.shape == (4, 3, 16, 16)
    assert batch.mask is not None
    assert batch.mask.shape == (4, 1, 16, 16)
    assert batch.image[1, 2, 3, 4].item() == pytest.approx(arrays.image[1, 3, 4, 2] / 255)
    assert set(batch.mask.unique().tolist()) == {0.0, 1.0}
    assert batch.label.dtype == torch.int64
    assert batch.source[0][0].startswith("photo")


def test_refusals_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="0 training images"):
        Samples([fakes.member(fakes.FakeSet("a", 0))], operations=("crop",), size=16, seed=0)
    with pytest.raises(ValueError, match="weight 0"):
        Samples([fakes.member(fakes.FakeSet("a", 1), 0.0)], operations=("crop",), size=16, seed=0)
    with pytest.raises(ValueError, match="sharpen"):
        Samples([fakes.member(fakes.FakeSet("a", 1))], operations=("crop", "sharpen"), size=16, seed=0)
    with pytest.raises(ValueError, match="0 members"):
        Samples([], operations=("crop",), size=16, seed=0)
    with pytest.raises(ValueError, match="24x24 pixels, not 16"):
        Samples([fakes.member(fakes.FakeSet("a", 1))], operations=("jpeg",), size=16, seed=0).load(0, 0, 1)
