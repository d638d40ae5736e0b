"""Clips made from photographs: short pans over one place, real or with one manipulation that follows the motion.

Order of things in a frame, forged or not: a view of the scene, the camera (its own noise level and file, new noise in
each frame), the manipulation, resampling and noise of the whole if the recipe has them, the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from unforge import forgeries, seeds, videos
from unforge.forgeries.steps import blending, camera, regions
from unforge.forgeries.steps.photographs import Photographs, Pool
from unforge.types import Kind, Sample
from unforge.videos import Clips, Manipulation

VERSION = "1"
MARGIN = 0.1
"""Room on each side of a frame for its motion, as a share of its side."""
PAN = 0.06
"""Largest way of a clip from its middle (share of the frame's side)."""
ZOOM = 0.03
"""Largest change of size over a clip."""
SHAKE = 0.003
"""Random motion of each frame (sigma, share of the frame's side)."""
TRIES = 10
KINDS: dict[str, Kind] = {"swap": "splice", "warp": "regenerated"}
"""Kind of a forged clip; its exact manipulation is `meta["manipulation"]`."""
SCALE = 128
"""Feathers are given in pixels of frames of this size."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One clip before it is made."""

    key: str
    name: str
    """Number within its manipulation, as videos of different manipulations share names in real sets."""
    photo: str
    twin: str
    """A real and a fake clip have it in common, and so how they are stored."""
    split: str
    manipulation: Manipulation | None


def clips(
    recipe: Clips, pool: Pool, count: int, size: int, seed: int, name: str, frames: int, policy: str = "evenly"
) -> Iterator[Sample]:
    """`count` frames of size x size px, `frames` of each clip, by `recipe`, from the photographs of `pool`.

    `name` is the set's id and begins every key and unit. A clip depends on `seed`, its key and its place in the plan.
    `policy` is checked but changes nothing: a made clip has no other frames. ValueError when there are not two clips
    for each split.
    """
    from unforge import shards

    videos.pick(frames, frames, policy)
    chosen = Photographs(pool, forgeries.SPLITS[recipe.split], extent(size))
    for item in plan(recipe, chosen, count // frames, seed, name):
        photos, about, made = clip(recipe, chosen, item, frames, size, seed)
        manipulation = item.manipulation.name if item.manipulation else videos.ORIGINAL
        for place, (data, mask, saved) in enumerate(made):
            yield Sample(
                key=f"{item.key}-{place:02d}",
                image=data,
                extension="jpg",
                mask=None if item.manipulation is None else shards.encode_png(mask),
                label=int(item.manipulation is not None),
                kind=KINDS[item.manipulation.how] if item.manipulation else "authentic",
                source=tuple(chosen.rows[photo]["source"][0] for photo in photos),
                unit=videos.unit(name, manipulation, item.name),
                split=item.split,
                meta={"seed": seed, "manipulation": manipulation, "frame": place, **about, **saved},
            )


def extent(size: int) -> int:
    """Side in pixels of the place in a photograph that a clip of frames of `size` px moves over."""
    return size + 2 * int(np.ceil(MARGIN * size))


def plan(recipe: Clips, chosen: Photographs, count: int, seed: int, name: str) -> list[Item]:
    """`count` clips: splits by their numbers of photographs, at least two each, manipulations by their shares in each
    split. Photographs take turns among real clips and among fake ones, so that each has some of both."""
    photos: dict[str, list[str]] = {}
    for key, row in chosen.rows.items():
        photos.setdefault(row["split"], []).append(key)
    if count < 2 * len(photos):
        raise ValueError(f"{count} clips for the splits {', '.join(sorted(photos))}: each needs two, a real and a fake")
    numbers = forgeries.shares({split: len(keys) / len(chosen.rows) for split, keys in photos.items()}, count)
    for split in sorted(photos):
        while numbers[split] < 2:
            numbers[split] += 1
            numbers[max(numbers, key=lambda other: (numbers[other], other))] -= 1
    done = {each.name: each for each in recipe.manipulations}
    kinds = {videos.ORIGINAL: recipe.authentic} | {each: (1 - recipe.authentic) / len(done) for each in done}
    items, seen = list[Item](), Counter[str]()
    for split in sorted(photos):
        rng = seeds.generator(seed, f"{name}/{split}", "plan")
        turns = [photos[split][i] for i in rng.permutation(len(photos[split]))]
        wanted = [kind for kind, number in forgeries.shares(kinds, numbers[split]).items() for _ in range(number)]
        pairs = Counter[bool]()
        for kind in wanted:
            key, called, fake = f"{name}-{len(items):04d}", f"{seen[kind]:03d}", kind in done
            photo, twin = turns[pairs[fake] % len(turns)], f"{name}/{split}/{pairs[fake]}"
            called += "f" if fake else ""
            items.append(Item(key=key, name=called, photo=photo, twin=twin, split=split, manipulation=done.get(kind)))
            pairs[fake] += 1
            seen[kind] += 1
    return items


def clip(
    recipe: Clips, chosen: Photographs, item: Item, frames: int, size: int, seed: int
) -> tuple[tuple[str, ...], dict[str, Any], list[tuple[bytes, np.ndarray, dict[str, Any]]]]:
    """One clip: photographs it is made of, what was done, and of each frame the file, its mask (S, S) bool and what
    is particular to it."""
    scene = seeds.generator(seed, item.key, "scene")
    clean, place = chosen.crop(item.photo, extent(size), scene)
    views = motion(frames, size, scene)
    sigma = round(float(scene.uniform(*recipe.sensor)), 3)
    first = int(scene.integers(camera.CAMERA_QUALITY[0], camera.CAMERA_QUALITY[1] + 1))
    own = first if scene.random() < 0.5 else None
    file = seeds.generator(seed, item.twin, "saved")
    saved = {
        "quality": int(file.integers(recipe.quality[0], recipe.quality[1] + 1)),
        "noise": round(float(file.uniform(*recipe.noise)), 3),
        "resampled": round(float(file.uniform(*recipe.resample)), 3),
    }
    about: dict[str, Any] = {"crop": place, "sensor_sigma": sigma, "camera_quality": own, "saved": saved}
    photos: tuple[str, ...] = (item.photo,)
    forged = None
    if item.manipulation is not None:
        rng = seeds.generator(seed, item.key, "forgery")
        donor = clean
        if item.manipulation.how == "swap":
            others = chosen.donors(item.photo)
            other = others[int(rng.integers(len(others)))]
            donor, about["donor_crop"] = chosen.crop(other, extent(size), rng)
            photos = (item.photo, other)
        forged = Forged(item.manipulation, clean, donor, views, size, sigma, rng)
        about["forgery"] = forged.about
    made = []
    for number, view in enumerate(views):
        rng = seeds.generator(seed, f"{item.key}-{number:02d}", "frame")
        frame = camera.sensor_noise(seen(clean, view, size), sigma, rng)
        frame = frame if own is None else camera.compress(frame, own)
        mask = np.zeros((size, size), bool)
        if forged is not None:
            frame, mask = forged.frame(frame, view, rng)
        if saved["resampled"] != 1:
            frame = through(frame, float(saved["resampled"]))
        if saved["noise"] > 0:
            frame = camera.noise(frame, float(saved["noise"]), rng)
        data = camera.encode_jpeg(frame, int(saved["quality"]))
        made.append((data, mask, {"view": [[round(float(v), 4) for v in row] for row in view]}))
    return photos, about, made


def motion(frames: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Matrix (2, 3) of each frame, from pixels of the frame to pixels of the place it moves over: a straight pan with
    a little zoom and shake, its middle in the middle of the place."""
    way = rng.uniform(-PAN, PAN, 2) * size
    zoom = float(rng.uniform(-ZOOM, ZOOM))
    middle, room = extent(size) / 2, extent(size) / 2 - size / 2
    views = []
    for time in np.linspace(-1, 1, frames) if frames > 1 else np.zeros(1):
        scale = 1 + zoom * float(time)
        most = room - max(0.0, scale - 1) * size / 2 - 1
        shift = np.clip(way * time + rng.normal(0, SHAKE * size, 2), -most, most)
        views.append(np.concatenate([np.eye(2) * scale, (middle + shift - scale * size / 2)[:, None]], axis=1))
    return views


def seen(place: np.ndarray, view: np.ndarray, size: int) -> np.ndarray:
    """What a frame of size x size px shows of a place (E, E) or (E, E, 3), uint8 or float32."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(place, view, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101))


def through(image: np.ndarray, share: float) -> np.ndarray:
    """The image after a resolution of `share` of its own, averaged down and brought back bicubically."""
    height, width = image.shape[:2]
    low = (max(1, round(width * share)), max(1, round(height * share)))
    shrunk = cv2.resize(image, low, interpolation=cv2.INTER_AREA if share < 1 else cv2.INTER_CUBIC)
    return np.asarray(cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_CUBIC))


class Forged:
    """The manipulation of one clip: drawn once, applied to every frame."""

    def __init__(
        self,
        manipulation: Manipulation,
        clean: np.ndarray,
        donor: np.ndarray,
        views: list[np.ndarray],
        size: int,
        sigma: float,
        rng: np.random.Generator,
    ) -> None:
        """`clean`, `donor`: places (E, E, 3) uint8 of the clip and of the new content; `sigma`: the camera's noise."""
        self.recipe, self.donor, self.size, self.sigma = manipulation, donor, size, sigma
        wanted = float(rng.uniform(*manipulation.area))
        self.region = followed(wanted, views, size, rng)
        detail = round(float(rng.uniform(*manipulation.detail)), 3)
        grain = round(float(rng.uniform(*manipulation.grain)), 3)
        feather = round(float(rng.uniform(*manipulation.feather)) * size / SCALE, 3)
        quality = None
        if manipulation.quality is not None:
            quality = int(rng.integers(manipulation.quality[0], manipulation.quality[1] + 1))
        self.about: dict[str, Any] = {
            "how": manipulation.how, "area": round(wanted, 4), "feather": feather, "detail": detail, "grain": grain,
            "quality": quality,
        }  # fmt: skip
        self.fields: tuple[np.ndarray, np.ndarray] | None = None
        if manipulation.how == "warp":
            self.about["amplitude"] = round(float(rng.uniform(*manipulation.amplitude)), 4)
            self.fields = displacement(self.region, self.about["amplitude"] * size, rng)
        else:
            self.about |= {"colour": manipulation.colour, "membrane": manipulation.membrane}
            self.donor = coloured(donor, clean, self.region, manipulation.colour)

    def frame(self, frame: np.ndarray, view: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The frame (S, S, 3) uint8 with the new content, and its mask (S, S) bool."""
        about = self.about
        mask = seen(self.region.astype(np.uint8) * 255, view, self.size) > 127
        if self.fields is None:
            content = seen(self.donor, view, self.size)
        else:
            y, x = np.mgrid[: self.size, : self.size].astype(np.float32)
            across, down = (seen(field, view, self.size) for field in self.fields)
            content = cv2.remap(frame, x + across, y + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        if about["detail"] != 1:
            content = through(content, about["detail"])
        if about["quality"] is not None:
            content = camera.compress(content, about["quality"])
        if about["grain"] > 0:
            content = camera.sensor_noise(content, about["grain"] * self.sigma, rng)
        new = content.astype(np.float32)
        if self.recipe.membrane:
            new += membrane(frame.astype(np.float32) - new, mask)
        opacity = blending.soften(mask, about["feather"])[..., None]
        mixed = opacity * new + (1 - opacity) * frame
        return np.clip(np.rint(mixed), 0, 255).astype(np.uint8), mask


def followed(area: float, views: list[np.ndarray], size: int, rng: np.random.Generator) -> np.ndarray:
    """(E, E) bool: a blob of about `area` (share of a frame) that stays in sight in every view, at least by half."""
    whole = extent(size)
    best: tuple[float, np.ndarray] | None = None
    for _ in range(TRIES):
        region = regions.draw("blob", whole, area * (size / whole) ** 2, rng)
        least = min(float((seen(region.astype(np.uint8) * 255, view, size) > 127).mean()) for view in views)
        if best is None or least > best[0]:
            best = (least, region)
        if least >= 0.5 * area:
            break
    assert best is not None
    return best[1]


def displacement(region: np.ndarray, most: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two (E, E) float32 fields (pixels, across and down), smooth, 0 outside the region, `most` at their largest."""
    side = region.shape[0]
    inside = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    envelope = np.minimum(1, inside / max(1.0, 0.5 * float(inside.max())))
    waves = rng.standard_normal((2, 5, 5)).astype(np.float32)
    fields = [cv2.resize(wave, (side, side), interpolation=cv2.INTER_CUBIC) * envelope for wave in waves]
    largest = float(np.hypot(*fields).max())
    across, down = (np.asarray(field * (most / max(largest, 1e-6)), np.float32) for field in fields)
    return across, down


def coloured(content: np.ndarray, image: np.ndarray, region: np.ndarray, colour: str) -> np.ndarray:
    """(E, E, 3) uint8: content with its own colour, the mean (`mean`) or mean and spread (`spread`) of the image's
    in the region."""
    if colour == "own":
        return content
    if colour == "mean":
        matched = blending.match_colour(content, image, region)
    else:
        inside, below = content[region].astype(np.float32), image[region].astype(np.float32)
        gain = np.clip(below.std(axis=0) / np.maximum(inside.std(axis=0), 1.0), 0.5, 2.0)
        matched = (content - inside.mean(axis=0)) * gain + below.mean(axis=0)
    return np.asarray(np.clip(np.rint(matched), 0, 255), np.uint8)


def membrane(difference: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(S, S, 3) float32: the difference outside the mask, spread smoothly into it.

    Stands in for Poisson blending: a weighted mean of what lies around instead of the solution of an equation."""
    sigma = max(2.0, 0.5 * float(np.sqrt(mask.sum() / np.pi)))
    outside = (~mask).astype(np.float32)
    weight = cv2.GaussianBlur(outside, (0, 0), sigma)[..., None] + 1e-3
    blurred: np.ndarray = cv2.GaussianBlur(difference * outside[..., None], (0, 0), sigma)
    return np.asarray(blurred / weight)
