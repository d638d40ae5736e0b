"""Stand-in sets: shares, splits, seeds."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unforge import forgeries, seeds, shards
from unforge.forgeries.steps.photographs import Photographs
from unforge.types import StandIn

KINDS = {"authentic": 0.25, "splice": 0.25, "copy_move": 0.25, "removal": 0.125, "regenerated": 0.125}
TRAIN = StandIn(kinds=KINDS, split="train", area=(0.05, 0.2))


def render(image: np.ndarray) -> np.ndarray:
    return cv2.blur(image, (5, 5))


def made(pool: Any, count: int = 24, seed: int = 0, recipe: StandIn = TRAIN, size: int = 48) -> list[Any]:
    return list(forgeries.stand_in(recipe, pool, count, size, seed, "toy", render))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 500))
def test_shares_add_up(weights: list[int], count: int) -> None:
    kinds = {f"kind{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    numbers = forgeries.shares(kinds, count)
    assert sum(numbers.values()) == count
    assert all(abs(numbers[kind] - count * share) < 1 for kind, share in kinds.items())


@pytest.mark.parametrize("kinds", [{"splice": 0.5}, {"splice": 1.5, "removal": -0.5}])
def test_shares_that_make_no_sense_are_refused(kinds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        forgeries.shares(kinds, 10)


def test_counts_labels_splits_and_sources(pool: Any) -> None:
    samples = made(pool)
    assert Counter(s.kind for s in samples) == forgeries.shares(KINDS, 24)
    assert [s.key for s in samples] == [f"toy-{i:05d}" for i in range(24)]
    assert len({s.kind for s in samples[:8]}) >= 3
    for sample in samples:
        assert sample.label == (sample.kind != "authentic")
        assert (sample.mask is None) == (sample.kind == "authentic")
        assert sample.unit == sample.key
        assert len(sample.source) == 1 + (sample.kind == "splice")
        assert len(set(sample.source)) == len(sample.source)
        assert {pool.rows[source.removeprefix("photo:")]["split"] for source in sample.source} == {sample.split}
        assert sample.extension == "jpg"
        image = shards.decode_image(sample.image)
        assert image.shape == (48, 48, 3)
        if sample.mask is not None:
            assert shards.decode_mask(sample.mask).shape == (48, 48)
            assert shards.decode_mask(sample.mask).any()
        meta = json.loads(json.dumps(dict(sample.meta)))
        assert meta["crop"]["photo"] == sample.source[0].removeprefix("photo:")
        assert meta["seed"] == 0
        assert meta["saved"]["quality"] in range(88, 99)
        assert ("forgery" in meta) == bool(sample.label)
    assert {s.split for s in samples} == {"train", "val"}


def test_photographs_take_turns_and_are_decoded_once(pool: Any) -> None:
    samples = made(pool, 24)
    assert set(Counter(s.source[0] for s in samples).values()) == {4}
    assert len(pool.decoded) == len(set(pool.decoded)) == 6


def test_equal_seeds_equal_bytes(pool: Any) -> None:
    cv2.setRNGSeed(3)
    first = made(pool, 16)
    cv2.setRNGSeed(4)
    second = made(pool, 16)
    assert first == second
    assert [s.image for s in first] != [s.image for s in made(pool, 16, seed=1)]


def test_images_do_not_depend_on_each_other(pool: Any) -> None:
    samples = {s.key: s for s in made(pool, 16)}
    photographs = Photographs(pool, ("train", "val"), 48)
    for item in reversed(forgeries.plan(TRAIN, photographs, 16, 0, "toy")):
        draft = forgeries.draft(TRAIN, photographs, item, 48, 0, render)
        data, _, _ = forgeries.finish(TRAIN, draft, item.key, 48, 0)
        assert data == samples[item.key].image


def test_an_image_and_its_authentic_sibling_differ_in_the_region_alone(pool: Any) -> None:
    photographs = Photographs(pool, ("train", "val"), 48)
    for item in forgeries.plan(TRAIN, photographs, 16, 0, "toy"):
        draft = forgeries.draft(TRAIN, photographs, item, 48, 0, render)
        sibling = forgeries.Item(key=item.key, kind="authentic", photo=item.photo)
        authentic = forgeries.draft(TRAIN, photographs, sibling, 48, 0)
        assert np.array_equal(draft.before, authentic.after)
        margin = int(np.ceil(3 * draft.meta["forgery"]["feather"])) if draft.mask.any() else 0
        near = cv2.dilate(draft.mask.astype(np.uint8), np.ones((2 * margin + 1,) * 2, np.uint8)) > 0
        assert np.array_equal(draft.after[~near], authentic.after[~near])


def test_recipes_resample_add_noise_and_choose_the_format(pool: Any) -> None:
    recipe = StandIn(kinds={"splice": 1.0}, split="test", extension="png", resample=(0.8, 1.25), noise=(1.0, 2.0))
    samples = made(pool, 12, recipe=recipe)
    assert {s.split for s in samples} == {"test"}
    factors = [s.meta["resampled"] for s in samples]
    assert 0.75 < min(factors) < 0.95
    assert 1.05 < max(factors) < 1.3
    for sample in samples:
        assert shards.decode_image(sample.image).shape == (48, 48, 3)
        assert sample.mask is not None
        assert shards.decode_mask(sample.mask).any()
        assert 1.0 <= sample.meta["saved"]["noise"] <= 2.0
        assert sample.meta["saved"]["quality"] is None


def test_controls_are_not_trained_on(pool: Any) -> None:
    with pytest.raises(ValueError, match="control"):
        made(pool, recipe=StandIn(kinds={"history": 1.0}, split="train"))
    assert {s.kind for s in made(pool, 4, recipe=StandIn(kinds={"history": 1.0}, split="test"))} == {"history"}


def test_unknown_kinds_are_refused(pool: Any) -> None:
    with pytest.raises(ValueError, match="teleport"):
        made(pool, recipe=StandIn(kinds={"teleport": 1.0}, split="test"))


def test_photographs_that_are_too_small_are_refused(pool: Any) -> None:
    with pytest.raises(ValueError, match="'train' have 500 px"):
        made(pool, size=500)


def test_samples_fit_the_shards(pool: Any, tmp_path: Any) -> None:
    samples = made(pool, 8)
    for sample in samples:
        assert shards.KEY.fullmatch(sample.key)
    assert seeds.generator(0, samples[0].key, "scene").random() != seeds.generator(0, samples[1].key, "scene").random()


THIRD = {"authentic": 1 / 3, "generated": 1 / 3, "regenerated": 1 / 3}


def test_three_classes_are_equal_in_number_format_and_size(pool: Any) -> None:
    samples = made(pool, 24, recipe=StandIn(kinds=THIRD, split="train"))
    parts = {"authentic": "real", "generated": "full_synthetic", "regenerated": "tampered"}
    assert Counter(s.meta["part"] for s in samples) == dict.fromkeys(parts.values(), 8)
    formats = {}
    for sample in samples:
        assert sample.meta["part"] == parts[sample.kind]
        assert sample.label == int(sample.kind != "authentic")
        formats.setdefault(sample.kind, set()).add((sample.extension, shards.decode_image(sample.image).shape))
        if sample.mask is not None:
            assert shards.decode_mask(sample.mask).all() == (sample.kind == "generated")
    assert len(set(map(frozenset, formats.values()))) == 1
    assert "part" not in made(pool, 1)[0].meta


def test_pretraining_photographs_are_nobody_elses(pool: Any) -> None:
    recipe = StandIn(kinds={"splice": 1.0}, split="pretrain")  # type: ignore[arg-type]
    own = {source for s in made(pool, 8, recipe=recipe) for source in s.source}
    assert own == {f"photo:{key}" for key, row in pool.rows.items() if row["split"] == "pretrain"}
    assert {s.split for s in made(pool, 4, recipe=recipe)} == {"pretrain"}
    with pytest.raises(ValueError, match="control"):
        made(pool, recipe=StandIn(kinds={"history": 1.0}, split="pretrain"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pretrain, train, test"):
        made(pool, recipe=StandIn(kinds={"splice": 1.0}, split="holiday"))  # type: ignore[arg-type]


class Sampled:
    """Small pictures of a generator: every pixel of one has its own colour, which its split shares in green."""

    GREEN: ClassVar = {"train": 0, "val": 120, "test": 240}

    def __init__(self, **counts: int) -> None:
        names = [(split, i) for split, count in counts.items() for i in range(count)]
        self.rows: dict[str, dict[str, Any]] = {
            f"toy-{split}-{i}": {"source": [f"made:{split}-{i}"], "split": split} for split, i in names
        }

    def image(self, key: str) -> np.ndarray:
        number, split = int(key.rpartition("-")[2]), self.rows[key]["split"]
        return np.full((16, 16, 3), (10 * number, self.GREEN[split], 255 - 10 * number), np.uint8)


def sampled_set(pool: Any, sampled: Sampled, count: int = 36, split: str = "train") -> list[Any]:
    recipe = StandIn(kinds=THIRD, split=split)  # type: ignore[arg-type]
    return list(forgeries.stand_in(recipe, pool, count, 48, 0, "toy", render, sampled))


def test_generated_images_begin_with_sampled_ones_of_their_split(pool: Any) -> None:
    sampled = Sampled(train=20, val=9, test=9)
    for split in ("train", "test"):
        samples = sampled_set(pool, sampled, split=split)
        whole = [s for s in samples if s.kind == "generated"]
        assert len(whole) == 12
        assert len({s.source for s in whole}) == (12 if split == "train" else 9)
        for sample in whole:
            assert sample.source == (f"made:{sample.meta['sampled'].removeprefix('toy-')}",)
            assert sample.source[0].startswith(f"made:{sample.split}-")
            assert "crop" not in sample.meta
            assert shards.decode_mask(sample.mask).all()
            green = np.median(shards.decode_image(sample.image)[..., 1])
            assert abs(float(green) - Sampled.GREEN[sample.split]) < 15
        assert {source[:6] for s in samples if s.kind != "generated" for source in s.source} == {"photo:"}


def test_sampled_images_change_nothing_but_generated_ones(pool: Any) -> None:
    recipe = StandIn(kinds=THIRD, split="train")
    plain = {s.key: s for s in made(pool, 36, recipe=recipe)}
    given = {s.key: s for s in sampled_set(pool, Sampled(train=20, val=9))}
    assert {key for key in plain if plain[key] != given[key]} == {k for k, s in plain.items() if s.kind == "generated"}
    assert given == {s.key: s for s in sampled_set(pool, Sampled(train=20, val=9))}


def test_a_split_without_sampled_images_is_refused(pool: Any) -> None:
    with pytest.raises(ValueError, match="no sampled image of split 'val': there are train"):
        sampled_set(pool, Sampled(train=20))
