"""Where DeepfakeBench keeps the frames of videos: its JSON files, and the folders it makes without them.

JSON: {dataset: {label: {split: {[compression]: {video: {label, frames, masks}}}}}}; the compression only for sets of
FaceForensics++. Paths in it were written on another machine, some with backslashes: a file is looked for by the end of
its path among those that are there, and nothing else is ever opened.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from unforge import videos
from unforge.datasets import layout
from unforge.types import Found

COMPRESSION = "c23"
COMPRESSIONS = ("raw", "c23", "c40")
MAX_LIST_BYTES = 512 * 2**20
"""Largest JSON or text file that is read: FaceForensics++'s has 32 frames and masks of 5,000 videos."""
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SHORTEST = 3
"""Parts that a path of a JSON file must have in common with a file's: folder, video, frame."""
CONFLICT = "listed as real and as fake"


@dataclass(frozen=True, kw_only=True)
class Video:
    """The frames of one video, nothing opened."""

    manipulation: str
    """Empty: a real video."""
    name: str
    split: str = ""
    """Empty: nobody said."""
    frames: tuple[str, ...] = ()
    """Files relative to the root, in the order of time."""
    masks: Mapping[str, str] = field(default_factory=dict)
    """Mask of a frame, where there is one."""
    absent: tuple[str, ...] = ()
    """Frames that are listed and not there."""
    reason: str = ""
    """Why all of it is rejected."""
    note: str = ""
    """Why all of it is flagged."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one set is laid out."""

    dataset: str
    """Its id, with which units begin."""
    files: tuple[str, ...]
    """Names of its JSON files, without the ending."""
    labels: Mapping[str, str]
    """Manipulation by label of the JSON files; empty: real."""
    folders: Mapping[str, str]
    """Manipulation by regular expression of a video's folder, whose last group is the video's name."""
    people: Callable[[str, str], tuple[str, ...]]
    """Ids of who is to be seen, by manipulation and name of the video: the one whose video it was first."""


def find(about: Layout, root: Path, known: Sequence[Video] | None = None) -> Iterator[Found]:
    """A row for every frame; `meta` {unit, manipulation, frame}, label 1 and kind unknown for fakes.

    `known`: the videos, where a set has lists of its own. ValueError when a person is in two splits.
    """
    rows = list(everything(about, root)) if known is None else list(known)
    good = [row for row in rows if not row.reason]
    videos.check_disjoint(((row.split, about.people(row.manipulation, row.name)) for row in good), about.dataset)
    for row in rows:
        yield from _frames(about, Path(root), row)


def everything(about: Layout, root: Path) -> list[Video]:
    """Videos of the set's JSON files below `root`; of its folders where there is none."""
    listing = layout.files(root)
    wanted = {name.casefold() for name in about.files}
    files = [p for p in listing if layout.extension(p) == "json" and layout.stem(p).casefold() in wanted]
    if not files:
        return from_folders(about, listing)
    locate = locator(listing)
    return merged(video for path in files for video in _listed(about, Path(root), path, locate))


def tests(rows: Iterable[Video]) -> list[Video]:
    """Videos of split test, and those of no split as test; rejected ones too."""
    return [replace(row, split="test") for row in rows if row.split in ("test", "")]


def from_folders(about: Layout, listing: Sequence[str]) -> list[Video]:
    """Videos by folder; the mask of a frame is the file of its name in `masks` beside `frames`."""
    present = {_unending(path): path for path in listing if layout.is_image(path)}
    groups: dict[tuple[str, str, str], list[str]] = {}
    patterns = [(re.compile(rf"(?:.*/)?{pattern}"), name) for pattern, name in about.folders.items()]
    for path in listing:
        if layout.is_image(path):
            folder = PurePosixPath(path).parent.as_posix()
            for pattern, manipulation in patterns:
                if match := pattern.fullmatch(folder):
                    groups.setdefault((manipulation, match[match.re.groups].replace("/", "_"), folder), []).append(path)
                    break
    found = []
    for (manipulation, name, _), frames in sorted(groups.items()):
        masks = {frame: mask for frame in frames if (mask := present.get(_unending(_mask(frame)))) and mask != frame}
        found.append(Video(manipulation=manipulation, name=layout.printable(name), frames=ordered(frames), masks=masks))
    return merged(found)


def merged(rows: Iterable[Video]) -> list[Video]:
    """`rows` without repetitions of a video in a split; a frame that is real and fake is rejected with its video."""
    kept: dict[tuple[str, str, str], Video] = {}
    labels: dict[str, bool] = {}
    rejected = []
    for row in rows:
        place = (row.manipulation, row.name, row.split)
        if row.reason:
            rejected.append(row)
        elif any(labels.setdefault(frame, bool(row.manipulation)) != bool(row.manipulation) for frame in row.frames):
            rejected.append(replace(row, reason=CONFLICT))
        elif place not in kept:
            kept[place] = row
        elif kept[place].frames != row.frames:
            joint = [*kept[place].frames, *row.frames]
            kept[place] = replace(kept[place], frames=ordered(joint), masks={**kept[place].masks, **row.masks})
    return [*kept.values(), *rejected]


def ordered(frames: Iterable[str]) -> tuple[str, ...]:
    """Files once each, in the order of the numbers in their names: 9.png before 10.png."""

    def numbers(path: str) -> tuple[list[tuple[int, str]], str]:
        parts = re.findall(r"[0-9]+|[^0-9]+", PurePosixPath(path).stem)
        return [(int(part), "") if part.isdecimal() and len(part) < 20 else (-1, part) for part in parts], path

    return tuple(sorted(set(frames), key=numbers))


def locator(listing: Sequence[str]) -> Callable[[str], str | None]:
    """What finds the file that a path of a JSON file means, None where it is not there. ValueError for a path that
    leads out of the set."""
    present = set(listing)
    above = {""} | {"/".join(path.split("/")[:depth]) + "/" for path in listing for depth in (1, 2) if "/" in path}

    def locate(text: str) -> str | None:
        parts = [part for part in re.split(r"[\\/]+", text) if part not in ("", ".")]
        if ".." in parts or "\0" in text:
            raise ValueError(f"{layout.printable(text)!r} leads out of the set")
        for at in range(max(1, len(parts) - SHORTEST + 1)):
            end = "/".join(parts[at:])
            for start in above:
                if start + end in present:
                    return start + end
        return None

    return locate


def content(root: Path, path: str) -> Any:
    """What a JSON file says. ValueError when it is no JSON, or too large to be a list of videos."""
    try:
        return json.loads(text(root, path))
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from None


def text(root: Path, path: str) -> str:
    """Text of a list. ValueError when it is too large or no UTF-8."""
    file = Path(root) / path
    if not file.is_file() or file.stat().st_size > MAX_LIST_BYTES:
        raise ValueError(f"{path}: not a regular file of at most {MAX_LIST_BYTES} bytes")
    return file.read_text(encoding="utf-8-sig")


def table(root: Path, path: str) -> list[dict[str, str]]:
    """Rows of a CSV file by its first line. ValueError when it is none."""
    try:
        return [{str(k): str(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(text(root, path)))]
    except csv.Error as error:
        raise ValueError(f"{path}: no CSV ({error})") from None


def named(listing: Sequence[str], *names: str) -> list[str]:
    """Files called so, whatever the case, in any folder."""
    wanted = {name.casefold() for name in names}
    return [path for path in listing if PurePosixPath(path).name.casefold() in wanted]


def _unending(path: str) -> str:
    return PurePosixPath(path).with_suffix("").as_posix()


def _mask(frame: str) -> str:
    """Where the mask of a frame lies: `masks` for the last `frames` among its folders."""
    parts = frame.split("/")
    places = [at for at, part in enumerate(parts[:-1]) if part == "frames"]
    return "/".join([*parts[: places[-1]], "masks", *parts[places[-1] + 1 :]]) if places else frame


def _listed(about: Layout, root: Path, path: str, locate: Callable[[str], str | None]) -> Iterator[Video]:
    """Videos of one JSON file; what is wrong in it becomes a rejected one."""
    try:
        sets = _mapping(content(root, path), path)
    except ValueError as error:
        yield Video(manipulation="", name=layout.stem(path), absent=(path,), reason=str(error))
        return
    known = {label.casefold(): (label, name) for label, name in about.labels.items()}
    for dataset, labels in sets.items():
        for label, splits in _items(labels):
            for split, inside in _items(splits):
                where = f"{path}: {dataset}/{label}/{split}"
                if label.casefold() not in known:
                    reason = f"{where}: label {label!r} is none of {', '.join(about.labels)}"
                    yield Video(manipulation="", name=f"{label}_{split}", absent=(path,), reason=reason)
                    continue
                manipulation = known[label.casefold()][1]
                if split not in SPLITS or not isinstance(inside, dict):
                    reason = f"{where}: not a split of videos; splits are {', '.join(SPLITS)}"
                    yield Video(manipulation=manipulation, name=f"{label}_{split}", absent=(path,), reason=reason)
                    continue
                if set(inside) & set(COMPRESSIONS):
                    inside = inside.get(COMPRESSION, {})
                for name, entry in _items(inside):
                    yield _video(name, entry, manipulation, SPLITS[split], label, path, locate)


def _video(
    name: str, entry: Any, manipulation: str, split: str, label: str, path: str, locate: Callable[[str], str | None]
) -> Video:
    name = layout.printable(name.replace("\\", "/").replace("/", "_"))
    empty = Video(manipulation=manipulation, name=name, split=split, absent=(path,))
    if not isinstance(entry, dict) or not isinstance(entry.get("frames"), list):
        return replace(empty, reason=f"{path}: video {name!r} has no list of frames")
    said = entry.get("label", label)
    if not isinstance(said, str) or said.casefold() != label.casefold():
        return replace(empty, reason=f"{path}: video {name!r} is labelled {said!r} and listed under {label!r}")
    frames, absent = list[str](), list[str]()
    try:
        masks = {PurePosixPath(at).stem: at for text in _texts(entry.get("masks") or []) if (at := locate(text))}
        for text in _texts(entry["frames"]):
            place = locate(text)
            frames.append(place) if place else absent.append(layout.printable(text).replace("\\", "/").lstrip("/"))
    except ValueError as error:
        return replace(empty, reason=f"{path}: video {name!r}: {error}")
    if not frames and not absent:
        return replace(empty, reason=f"{path}: video {name!r} has no frames")
    paired = {frame: masks[stem] for frame in frames if (stem := PurePosixPath(frame).stem) in masks}
    return replace(empty, frames=ordered(frames), masks=paired, absent=tuple(absent))


def _mapping(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: no object of data sets")
    return value


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else ()


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or any(not isinstance(value, str) for value in values):
        raise ValueError("frames and masks must be lists of paths")
    return values


def _frames(about: Layout, root: Path, row: Video) -> Iterator[Found]:
    """Rows of a video: its frames, and a rejected one for each that is absent (or, rejected as a whole, one at all)."""
    unit = videos.unit(about.dataset, row.manipulation, row.name)
    base = Found(
        key=layout.key(unit.partition("/")[2]),
        image=root,
        mask=None,
        label=int(bool(row.manipulation)),
        kind="unknown" if row.manipulation else "authentic",
        source=about.people(row.manipulation, row.name),
        split=row.split or "test",
        meta={"unit": unit, "manipulation": row.manipulation or videos.ORIGINAL},
    )
    if row.reason:
        place = (row.frames or row.absent or ("",))[0]
        yield replace(base, image=root / place, status="rejected", reason=row.reason)
        return
    for frame in row.frames:
        key, mask = layout.key(f"{base.key}_{layout.stem(frame)}"), row.masks.get(frame)
        yield replace(
            base, key=key, image=root / frame, mask=root / mask if mask and row.manipulation else None,
            status="flagged" if row.note else "ok", reason=row.note, meta={**base.meta, "frame": layout.stem(frame)},
        )  # fmt: skip
    for frame in row.absent:
        key = layout.key(f"{base.key}_{layout.stem(frame)}")
        yield replace(base, key=key, image=root / frame, status="rejected", reason=f"{frame}: {layout.MISSING}")
