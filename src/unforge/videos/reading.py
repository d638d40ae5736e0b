"""From the rows of a set of videos to samples: whole videos are chosen, then frames of each, then every file is opened.

Other sets reject a fake without a mask; of videos most have none, and are taken as they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from unforge import paths, shards, videos
from unforge.datasets import ingest, layout, load
from unforge.types import Found, Sample

MAX_IMAGE_BYTES = 64 * 2**20


def options(scale: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `samples`, here and in `ingest`, by the values of a profile: `limit`, and of videos which `frames`
    are taken by which `policy`."""
    return {"limit": scale["images"], **{name: scale[name] for name in ("frames", "policy") if name in scale}}


def samples(
    raw: Path, rows: list[dict[str, Any]], *, limit: int | None = None, seed: int = 0, frames: int, policy: str
) -> Iterator[Sample]:
    """Samples of a real set that `unforge data add` put into the directory `raw` (`data/raw/<id>`).

    The other arguments are those of `read`. ValueError when `raw` holds no real set.
    """
    source = paths.read_json(raw / "SOURCE.json")
    if source.get("source") != "real":
        raise ValueError(f"{raw} holds no real set: unforge data add {raw.name} PATH puts it there")
    found = load(source["module"])
    yield from read(found, raw / "files", rows, limit=limit, seed=seed, frames=frames, policy=policy)


def read(
    module: ModuleType,
    root: Path,
    rows: list[dict[str, Any]],
    *,
    frames: int | None = None,
    policy: str = "evenly",
    limit: int | None = None,
    seed: int = 0,
    progress: ingest.Progress | None = None,
) -> Iterator[Sample]:
    """Samples of the videos at `root`, original bytes untouched, `frames` of each by `policy` (`videos.pick`).

    `limit` takes at most so many images, in whole videos: each (split, manipulation) by its share, chosen by the hash
    of (`seed`, key). `rows` gets one row (`shards.ROWS`) per file looked at, and of those rejected before. A broken
    frame leaves a gap: no other takes its place. ValueError when the layout is not that of the set.
    """
    videos.pick(1, frames, policy)
    found = list(module.find(Path(root)))
    usable: dict[str, list[Found]] = {}
    for row in found:
        if row.status == "rejected":
            rows.append(ingest.record(row, Path(root), "rejected", row.reason))
        else:
            usable.setdefault(row.meta["unit"], []).append(row)
    for unit, members in usable.items():
        usable[unit] = [members[place] for place in videos.pick(len(members), frames, policy)]
    total, seen, keys = sum(map(len, usable.values())), dict[str, tuple[str, str]](), set[str]()
    done = 0
    for wanted, candidates in chosen(list(usable.values()), limit, frames, seed):
        for unit in candidates:
            if wanted == 0:
                break
            good = 0
            for row in usable[unit]:
                sample, record = _examined(row, Path(root), getattr(module, "read_mask", layout.read_mask), seen, keys)
                rows.append(record)
                done += 1
                if progress is not None:
                    progress(done, total)
                if sample is not None:
                    good += 1
                    yield sample
            wanted -= bool(good)


def chosen(
    groups: Sequence[list[Found]], limit: int | None, frames: int | None, seed: int
) -> list[tuple[int, list[str]]]:
    """(number of videos wanted, units in order) of each (split, manipulation); all in one where `limit` takes all."""
    firsts = [
        dataclasses.replace(
            group[0], key=group[0].meta["unit"], split=f"{group[0].split}/{group[0].meta['manipulation']}"
        )
        for group in groups
    ]
    most = None
    if limit is not None and sum(map(len, groups)) > limit:
        most = max(1, limit // (frames or max(map(len, groups))))
    return [(wanted, [row.key for row in rows]) for wanted, rows in ingest.select(firsts, most, seed)]


def _examined(
    found: Found,
    root: Path,
    read_mask: Callable[[bytes], np.ndarray],
    seen: dict[str, tuple[str, str]],
    keys: set[str],
) -> tuple[Sample | None, dict[str, Any]]:
    """The sample of a frame, or None, and what is to be recorded. Takes up hash and key of what is accepted."""
    notes = [found.reason] if found.reason else []
    unit = str(found.meta["unit"])
    try:
        data = _bytes(found.image)
        digest = hashlib.sha256(data).hexdigest()
        place, other = seen.setdefault(digest, (layout.printable(found.image.relative_to(root).as_posix()), unit))
        if other != unit:
            raise ingest.UnusableError(f"duplicate: the same bytes as {place}")
        extension = shards.EXTENSIONS[str(shards.open_image(data).format)]
        image = shards.decode_image(data)
        mask = None if found.mask is None else _mask(found.mask, image, read_mask, notes)
    except ValueError as error:
        return None, ingest.record(found, root, "rejected", "; ".join([*notes, str(error)]))
    key = found.key
    if key in keys:
        place = found.image.relative_to(root).as_posix()
        key = f"{key[:67]}-{hashlib.sha256(place.encode('utf-8', 'backslashreplace')).hexdigest()[:12]}"
    keys.add(key)
    sample = Sample(
        key=key,
        image=data,
        extension=extension,
        mask=None if mask is None else shards.encode_png(mask),
        label=found.label,
        kind=found.kind,
        source=found.source,
        unit=unit,
        split=found.split,
        meta={**found.meta, **({"flags": notes} if notes else {})},
        pixels=shards.describe(image, mask),
    )
    return sample, ingest.record(found, root, "flagged" if notes else "ok", "; ".join(notes), key)


def _mask(
    file: Path, image: np.ndarray, read_mask: Callable[[bytes], np.ndarray], notes: list[str]
) -> np.ndarray | None:
    """(H, W) bool; None with a note for a mask that marks nothing, is unreadable or has another size: the frame is
    as fake as before."""
    try:
        mask = read_mask(_bytes(file))
    except ValueError as error:
        notes.append(f"mask left out: {error}")
        return None
    if mask.shape != image.shape[:2]:
        notes.append(
            f"mask left out: {mask.shape[1]}x{mask.shape[0]} pixels, the frame {image.shape[1]}x{image.shape[0]}"
        )
        return None
    if not mask.any():
        notes.append("mask left out: it marks nothing")
        return None
    return mask


def _bytes(path: Path) -> bytes:
    """Content of a regular file of at most `MAX_IMAGE_BYTES`; UnusableError for any other."""
    if not path.is_file():
        raise ingest.UnusableError(f"{path.name} is not a regular file")
    if (size := path.stat().st_size) > MAX_IMAGE_BYTES:
        raise ingest.UnusableError(f"{path.name} has {size} bytes: more than {MAX_IMAGE_BYTES} are not read")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ingest.UnusableError(f"{path.name} cannot be read ({error.strerror or type(error).__name__})") from None
