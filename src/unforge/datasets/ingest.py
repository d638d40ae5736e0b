"""From the rows of a dataset module to samples: every file is opened and checked, and none is lost silently.

A row ends `ok`, `flagged` (in the set, with something to know about it) or `rejected` (left out), the last
two with a reason; one bad file never stops the rest.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from unforge import paths, seeds, shards
from unforge.datasets import layout, load
from unforge.types import Found, Sample

MAX_FILE_BYTES = 2**30
ORIENTATION = 0x0112
Progress = Callable[[int, int], None]


class UnusableError(ValueError):
    """Why one image is left out."""


def samples(
    raw: Path, rows: list[dict[str, Any]], *, limit: int | None = None, seed: int = 0, progress: Progress | None = None
) -> Iterator[Sample]:
    """Samples of a real set that `unforge data add` put into the directory `raw` (`data/raw/<id>`).

    The other arguments are those of `read`. ValueError when `raw` holds no real set.
    """
    source = paths.read_json(raw / "SOURCE.json")
    if source.get("source") != "real":
        raise ValueError(f"{raw} holds no real set: unforge data add {raw.name} PATH puts it there")
    yield from read(load(source["module"]), raw / "files", rows, limit=limit, seed=seed, progress=progress)


def read(
    module: ModuleType,
    root: Path,
    rows: list[dict[str, Any]],
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Sample]:
    """Samples of the dataset at `root`, original bytes untouched, as `module.find` lays them out.

    `rows` gets one row (`shards.ROWS`) per file looked at while the iterator is consumed. `limit` takes at
    most so many images: each (split, kind) by its share, chosen by the hash of (`seed`, key), an unusable
    image being replaced by the next; the images not needed then are not looked at and give no row.
    `progress(done, total)` is called after each file.
    ValueError when the layout is not that of the dataset.
    """
    found = list(module.find(Path(root)))
    read_mask = getattr(module, "read_mask", layout.read_mask)
    seen: dict[str, str] = {}
    keys: set[str] = set()
    done = 0
    for wanted, candidates in select(found, limit, seed):
        for row in candidates:
            if wanted == 0:
                break
            sample, record = _examine(row, Path(root), read_mask, seen, keys)
            rows.append(record)
            done += 1
            if progress is not None:
                progress(done, len(found))
            if sample is not None:
                wanted -= 1
                yield sample


def select(found: Sequence[Found], limit: int | None, seed: int) -> list[tuple[int, list[Found]]]:
    """(number wanted, candidates in order) for each stratum; all rows in one stratum when `limit` takes all.

    Strata are (split, kind) of the rows not yet rejected; each gets its share of `limit`, rounded so that the
    sum is exact, and at least one image while there is room. Rejected rows come last, with nothing wanted of
    them but their rows.
    """
    usable = [row for row in found if row.status != "rejected"]
    if limit is None or len(usable) <= limit:
        return [(len(found), list(found))]
    strata: dict[tuple[str, str], list[Found]] = defaultdict(list)
    for row in usable:
        strata[row.split, row.kind].append(row)
    exact = {name: limit * len(members) / len(usable) for name, members in strata.items()}
    least = 1 if limit >= len(strata) else 0
    wanted = {name: max(least, int(share)) for name, share in exact.items()}
    while sum(wanted.values()) < limit:
        wanted[min(wanted, key=lambda name: (wanted[name] - exact[name], name))] += 1
    while sum(wanted.values()) > limit:
        wanted[
            max((name for name in wanted if wanted[name] > least), key=lambda name: (wanted[name] - exact[name], name))
        ] -= 1
    chosen = [
        (
            wanted[name],
            sorted(strata[name], key=lambda row: (seeds.fraction(seed, row.key, "limit"), row.key, row.image)),
        )
        for name in sorted(strata)
    ]
    rejected = [row for row in found if row.status == "rejected"]
    return [*chosen, (len(rejected), rejected)]


def record(found: Found, root: Path, status: str, reason: str, key: str | None = None) -> dict[str, Any]:
    """Row of `shards.ROWS`, paths relative to `root`."""
    return {
        "source_image": _relative(found.image, root),
        "source_mask": "" if found.mask is None else _relative(found.mask, root),
        "key": key or found.key,
        "kind": found.kind,
        "label": str(found.label),
        "status": status,
        "reason": reason,
    }


def _relative(path: Path, root: Path) -> str:
    return layout.printable((path.relative_to(root) if path.is_relative_to(root) else path).as_posix())


def _examine(
    found: Found,
    root: Path,
    read_mask: Callable[[bytes], np.ndarray],
    seen: dict[str, str],
    keys: set[str],
) -> tuple[Sample | None, dict[str, Any]]:
    """The sample of a row, or None, and what is to be recorded. Takes up hash and key of accepted images."""
    if found.status == "rejected":
        return None, record(found, root, "rejected", found.reason)
    notes = [found.reason] if found.reason else []
    try:
        data = _bytes(found.image)
        digest = hashlib.sha256(data).hexdigest()
        if digest in seen:
            raise UnusableError(f"duplicate: the same bytes as {seen[digest]}")
        extension, exif = _header(data, found.image, notes)
        image = shards.decode_image(data)
        mask, orientation = None, 1
        if found.label:
            if found.mask is None:
                raise UnusableError(layout.NO_MASK)
            mask = _mask(found, read_mask)
            turns = int(found.meta.get("mask_turns", 0))
            if turns % 2 and mask.shape == image.shape[1::-1]:
                mask = np.rot90(mask, turns)
                notes.append(f"mask turned by {90 * turns} degrees counter-clockwise: its author stored it turned")
            orientation = _orientation(image, mask, exif)
            if orientation != 1:
                image = shards.decode_image(data, orientation)
                notes.append(f"EXIF orientation {orientation} applied: the mask is drawn on the turned image")
            _check_mask(image, mask, notes)
        if exif != 1 and orientation == 1:
            notes.append(f"EXIF orientation {exif} not applied: pixels are taken as stored")
    except ValueError as error:
        return None, record(found, root, "rejected", "; ".join([*notes, str(error)]))
    key = _unique(found, root, keys)
    seen[digest] = _relative(found.image, root)
    keys.add(key)
    reason = "; ".join(notes)
    meta = {
        **found.meta,
        **({"flags": notes} if notes else {}),
        **({"orientation": orientation} if orientation != 1 else {}),
    }
    sample = Sample(
        key=key,
        image=data,
        extension=extension,
        mask=None if mask is None else shards.encode_png(mask),
        label=found.label,
        kind=found.kind,
        source=found.source,
        unit=key,
        split=found.split,
        meta=meta,
        pixels=shards.describe(image, mask),
    )
    return sample, record(found, root, "flagged" if notes else "ok", reason, key)


def _bytes(path: Path) -> bytes:
    """Content of a file; UnusableError when it cannot be read, is empty or too large."""
    try:
        if not path.is_file():
            raise UnusableError(f"{path.name} is not a regular file")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UnusableError(f"{path.name} has {size} bytes: more than {MAX_FILE_BYTES} are not read")
        data = path.read_bytes()
    except OSError as error:
        raise UnusableError(f"{path.name} cannot be read ({error.strerror or type(error).__name__})") from None
    if not data:
        raise UnusableError(f"{path.name} is empty")
    return data


def _header(data: bytes, path: Path, notes: list[str]) -> tuple[str, int]:
    """Format by content and EXIF orientation (1 when there is none); what is unusual goes to `notes`."""
    image = shards.open_image(data)
    extension = shards.EXTENSIONS[str(image.format)]
    called = {"jpeg": "jpg", "jpe": "jpg", "tiff": "tif"}.get(layout.extension(path.name), layout.extension(path.name))
    if called != extension:
        notes.append(f"called .{layout.extension(path.name)}, but its content is {image.format}")
    if image.mode == "CMYK":
        notes.append("CMYK: converted to RGB for decoding")
    elif image.mode.startswith(("I", "F")):
        notes.append(f"{'16-bit' if image.mode.startswith('I;16') else 'more than 8 bits'}: reduced to 8 for decoding")
    elif image.mode == "P":
        notes.append("palette: converted to RGB for decoding")
    if "A" in image.mode or "transparency" in image.info:
        notes.append("alpha: dropped for decoding")
    if image.format in ("TIFF", "PNG", "WEBP") and _lenient(lambda: image.n_frames, 1) > 1:  # type: ignore[attr-defined]
        notes.append("several frames: the first is used")
    orientation = _lenient(lambda: image.getexif().get(ORIENTATION, 1), 1)
    return extension, orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _lenient(read: Callable[[], Any], default: Any) -> Any:
    """What `read` gives, or `default` where a file's side information is broken: pixels decide whether it is used."""
    try:
        return read()
    except Exception:  # Pillow's parsers raise SyntaxError, struct.error, ValueError, KeyError, ... on hostile blocks
        return default


def _mask(found: Found, read_mask: Callable[[bytes], np.ndarray]) -> np.ndarray:
    """(H, W) bool by the dataset's mask rule; ValueError says that it is about the mask."""
    assert found.mask is not None
    try:
        mask = read_mask(_bytes(found.mask))
    except ValueError as error:
        raise UnusableError(f"mask: {error}") from None
    return ~mask if found.meta.get("mask_inverted") else mask


def _orientation(image: np.ndarray, mask: np.ndarray, exif: int) -> int:
    """The EXIF orientation to apply: only when the mask fits the turned image and not the stored one."""
    turned = exif >= 5 and mask.shape == image.shape[1::-1] and mask.shape != image.shape[:2]
    return exif if turned else 1


def _check_mask(image: np.ndarray, mask: np.ndarray, notes: list[str]) -> None:
    if mask.shape != image.shape[:2]:
        raise UnusableError(
            f"mask of another size: {mask.shape[1]}x{mask.shape[0]} pixels, the image {image.shape[1]}x{image.shape[0]}"
        )
    if not mask.any():
        raise UnusableError("empty mask on a tampered image")
    if mask.all():
        notes.append("full mask: the whole image counts as manipulated")


def _unique(found: Found, root: Path, keys: set[str]) -> str:
    """The row's key; with a hash of its path when another image already has it."""
    if found.key not in keys:
        return found.key
    return f"{found.key[:67]}-{hashlib.sha256(_relative(found.image, root).encode()).hexdigest()[:12]}"


def rejects(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows that are not `ok`, for `shards.write(rejects=...)`: evaluated lazily, after the samples."""
    return (row for row in rows if row["status"] != "ok")
