"""Forgeries, one per module, and the stand-in sets made of them.

A forgery module has `DONOR` (`other`: a crop of another photograph, `same`: the clean scene itself, or empty) and
`forge(image, donor, recipe, rng, render)` -> forged image, mask, what was done. Steps they share are in `steps`.

How a stand-in image is made, forged or not: a natural crop of a shrunk photograph, a camera (sensor noise, half of
the time JPEG 88-97), the forgery if any, resampling and noise of the whole if the recipe has them, the file. So a
forged image and its authentic sibling differ in the region alone.

Where a generator's images are given (`sampled`), a generated image begins with one of these instead of a scene.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from unforge import seeds
from unforge.types import Kind, Sample, StandIn

if TYPE_CHECKING:
    from unforge.forgeries.steps.photographs import Photographs, Pool

VERSION = "1"
CONTROLS = ("history",)
"""Kinds that are only measured, never trained on."""
WHOLE = "generated"
"""The kind that is no forgery of a photograph: everything of it is made."""
PARTS = {"authentic": "real", WHOLE: "full_synthetic"}
"""`meta["part"]` by kind in a set that has generated images among others; every other kind is `tampered`."""
SPLITS = {"pretrain": ("pretrain",), "train": ("train", "val"), "test": ("test",)}
"""The pool's splits whose photographs a recipe's `split` takes."""

Render = Callable[[np.ndarray], np.ndarray]


def names() -> list[str]:
    """Every kind of forgery."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def load(kind: str) -> ModuleType:
    """The module of a kind. ValueError when there is none."""
    if kind not in names():
        raise ValueError(f"no forgery {kind!r}: there is {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{kind}")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image of a stand-in set, before it is made."""

    key: str
    kind: Kind
    photo: str
    """Key of its photograph in the pool; of what was sampled, only its split counts."""
    scene: str = ""
    """Key of the sampled image that it begins with; empty: a scene of its photograph."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One image of a stand-in set, before it is saved."""

    before: np.ndarray
    """(S, S, 3) uint8: what the camera made, nothing forged."""
    after: np.ndarray
    """(S, S, 3) uint8: forged; `before` itself when authentic."""
    mask: np.ndarray
    """(S, S) bool."""
    photos: tuple[str, ...]
    """Keys of photographs, or of the sampled image, it was made of."""
    meta: Mapping[str, Any]


def shares(kinds: Mapping[str, float], count: int) -> dict[str, int]:
    """`count` images over `kinds` by largest remainder; ties go to the name that sorts first."""
    if any(share < 0 for share in kinds.values()) or abs(sum(kinds.values()) - 1) > 1e-6:
        raise ValueError(f"shares {dict(kinds)} must be positive and sum to 1")
    exact = {kind: count * share for kind, share in sorted(kinds.items())}
    whole = {kind: int(value + 1e-9) for kind, value in exact.items()}
    rest = sorted(exact, key=lambda kind: (whole[kind] - exact[kind], kind))[: count - sum(whole.values())]
    return {kind: number + (kind in rest) for kind, number in whole.items()}


def photographs(recipe: StandIn, pool: Pool, size: int) -> Photographs:
    """The photographs of the pool that images of size x size px by `recipe` are made from."""
    from unforge.forgeries.steps.photographs import Photographs

    if recipe.split not in SPLITS:
        raise ValueError(f"split {recipe.split!r} of a stand-in: {', '.join(SPLITS)} are accepted")
    return Photographs(pool, SPLITS[recipe.split], round(size / min(recipe.resample)))


def plan(
    recipe: StandIn, chosen: Photographs, count: int, seed: int, name: str, sampled: Pool | None = None
) -> list[Item]:
    """Which kind is made of which photograph: photographs take turns, within each kind and over all; so do the
    `sampled` images of a split. ValueError when there is none of a split that needs one."""
    for kind in recipe.kinds:
        if kind not in ("authentic", *names()):
            raise ValueError(f"no forgery {kind!r}: there is authentic, {', '.join(names())}")
        if kind in CONTROLS and recipe.split != "test":
            raise ValueError(f"{kind!r} is a control: a {recipe.split} stand-in must not hold it")
    rng = seeds.generator(seed, name, "plan")
    keys = list(chosen.rows)
    turns = [keys[i] for i in rng.permutation(len(keys))]
    kinds = [kind for kind, number in shares(recipe.kinds, count).items() for _ in range(number)]
    pairs = [(kind, turns[i % len(turns)]) for i, kind in enumerate(kinds)]
    order = rng.permutation(count)
    items = [Item(key=f"{name}-{i:05d}", kind=pairs[j][0], photo=pairs[j][1]) for i, j in enumerate(order)]
    return items if sampled is None else _with_scenes(items, chosen, sampled, seed, name)


def _with_scenes(items: list[Item], chosen: Photographs, sampled: Pool, seed: int, name: str) -> list[Item]:
    """Give each generated image a sampled one of its split, each once before any comes again."""
    scenes: dict[str, list[str]] = {}
    for key in sorted(sampled.rows):
        scenes.setdefault(sampled.rows[key]["split"], []).append(key)
    for split, keys in scenes.items():
        order = seeds.generator(seed, f"{name}/{split}", "scenes").permutation(len(keys))
        scenes[split] = [keys[i] for i in order]
    found, used = list[Item](), Counter[str]()
    for item in items:
        split = chosen.rows[item.photo]["split"]
        if item.kind == WHOLE:
            if split not in scenes:
                raise ValueError(
                    f"no sampled image of split {split!r}: there are {', '.join(sorted(scenes)) or 'none'}"
                )
            item = replace(item, scene=scenes[split][used[split] % len(scenes[split])])
            used[split] += 1
        found.append(item)
    return found


def draft(
    recipe: StandIn,
    chosen: Photographs,
    item: Item,
    size: int,
    seed: int,
    render: Render | None = None,
    sampled: Pool | None = None,
) -> Draft:
    """Make one image, up to saving it. Depends on its key and seed only, not on the images before it."""
    from unforge.forgeries.steps import camera

    scene = seeds.generator(seed, item.key, "scene")
    resampled = float(scene.uniform(*recipe.resample))
    extent = round(size / resampled)
    clean, place = chosen.crop(item.photo, extent, scene)
    before, exposure = camera.expose(clean, scene)
    meta: dict[str, Any] = {"seed": seed, "crop": place, **exposure, "resampled": round(size / extent, 4)}
    if item.kind == "authentic":
        return Draft(
            before=before, after=before, mask=np.zeros((extent, extent), bool), photos=(item.photo,), meta=meta
        )

    forgery = load(item.kind)
    rng = seeds.generator(seed, item.key, "forgery")
    photos: tuple[str, ...] = (item.photo,)
    donor = None
    if item.scene:
        assert sampled is not None, item
        donor, photos = _scene(sampled, item.scene, extent, rng), (item.scene,)
        meta = {"seed": seed, "sampled": item.scene, "resampled": meta["resampled"]}
    elif forgery.DONOR == "same":
        donor = clean
    elif forgery.DONOR == "other":
        others = chosen.donors(item.photo)
        other = others[int(rng.integers(len(others)))]
        donor, meta["donor_crop"] = chosen.crop(other, extent, rng)
        photos = (item.photo, other)
    after, mask, done = forgery.forge(before, donor, recipe, rng, render)
    assert mask.any(), item
    meta["forgery"] = done
    return Draft(before=before, after=after, mask=mask, photos=photos, meta=meta)


def _scene(sampled: Pool, key: str, extent: int, rng: np.random.Generator) -> np.ndarray:
    """A picture that begins with one sampled image; others of its split give the detail that an enlarged one lacks."""
    from unforge.forgeries.steps import tiles

    split = sampled.rows[key]["split"]
    others = [other for other in sorted(sampled.rows) if sampled.rows[other]["split"] == split]
    drawn, strength = iter([key]), float(rng.uniform(*tiles.DETAIL))

    def draw() -> np.ndarray:
        return sampled.image(next(drawn, None) or others[int(rng.integers(len(others)))])

    return tiles.scene(draw, extent, strength)


def finish(recipe: StandIn, made: Draft, key: str, size: int, seed: int) -> tuple[bytes, np.ndarray, dict[str, Any]]:
    """The file of a draft, its mask (size, size) bool and how it was saved."""
    import cv2

    from unforge.forgeries.steps import camera

    rng = seeds.generator(seed, key, "finish")
    quality = int(rng.integers(recipe.quality[0], recipe.quality[1] + 1))
    sigma = round(float(rng.uniform(*recipe.noise)), 3)
    image = camera.resample(made.after, size)
    if sigma > 0:
        image = camera.noise(image, sigma, rng)
    mask = made.mask
    if mask.shape != (size, size):
        mask = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR) > 0.5
    saved = {"noise": sigma, "quality": quality if recipe.extension == "jpg" else None}
    return camera.save(image, recipe.extension, quality), mask, saved


def part(recipe: StandIn, kind: str) -> dict[str, str]:
    """{"part": class of an image of `kind`} in a set of three classes, else nothing."""
    return {"part": PARTS.get(kind, "tampered")} if WHOLE in recipe.kinds else {}


def stand_in(
    recipe: StandIn,
    pool: Pool,
    count: int,
    size: int,
    seed: int,
    name: str,
    render: Render | None = None,
    sampled: Pool | None = None,
) -> Iterator[Sample]:
    """`count` images of size x size px by `recipe`, from the photographs of the `shards.ShardSet` `pool`.

    `name` is the set's id and begins every key. `render` re-renders an (H, W, 3) uint8 image and is needed for
    `regenerated` and `generated`. `sampled`: images of a generator, of any size, that `generated` ones begin with;
    their `source` names these. Where a recipe has `generated`, `meta["part"]` says the class (`PARTS`). Raises
    ValueError when the recipe cannot be followed.
    """
    from unforge import shards

    chosen = photographs(recipe, pool, size)
    for item in plan(recipe, chosen, count, seed, name, sampled):
        made = draft(recipe, chosen, item, size, seed, render, sampled)
        rows = sampled.rows if item.scene and sampled else chosen.rows
        data, mask, saved = finish(recipe, made, item.key, size, seed)
        yield Sample(
            key=item.key,
            image=data,
            extension=recipe.extension,
            mask=None if item.kind == "authentic" else shards.encode_png(mask),
            label=int(item.kind != "authentic"),
            kind=item.kind,
            source=tuple(rows[photo]["source"][0] for photo in made.photos),
            unit=item.key,
            split=chosen.rows[item.photo]["split"],
            meta={**made.meta, **part(recipe, item.kind), "saved": saved},
        )
