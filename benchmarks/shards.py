"""Writing and reading shards against webdataset's plain writer and against Pillow.

    python benchmarks/shards.py [--rounds 15] [--images 1000]

One thread. Samples are JPEG crops of 256 px of photographs from packages with a mask PNG, their pixels described
beforehand. In every round all contenders run on the same samples, in turn; a ratio is the median over rounds of
(ours / theirs) in CPU time, with the range over rounds. The peers of writing: webdataset's ShardWriter with image, JSON
and mask as it is; the same with fixed times and owners, which is faster because the time of day needs an extended
header for each member; and that with SHA-256 of image and mask in the JSON. Ours writes the same members with fixed
times and owners, hashes, byte ranges and a manifest; "without hashing" is ours with the hash function taken out.
Bounds: 1.10 without hashing, 1.40 with. Decoding: `Image.open(...).convert("RGB")` to an array. Bound: 1.10.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset import ShardWriter

from unforge import shards
from unforge.datasets import photos
from unforge.types import Sample

SIDE = 256


def samples(count: int) -> list[Sample]:
    """JPEG crops with a square mask each."""
    pictures = [shards.decode_image(photo.image) for photo in photos.photographs()]
    made = []
    for index in range(count):
        picture, rng = pictures[index % len(pictures)], np.random.default_rng(index)
        y, x = (int(rng.integers(size - SIDE + 1)) for size in picture.shape[:2])
        crop = np.ascontiguousarray(picture[y : y + SIDE, x : x + SIDE])
        mask = np.zeros((SIDE, SIDE), bool)
        mask[40:140, 60 : 100 + index % 100] = True
        stream = io.BytesIO()
        Image.fromarray(crop).save(stream, "JPEG", quality=92)
        meta = {"kind": "splice", "feather": 1.5, "jpeg": [90, 92], "box": [40, 60, 100, 40]}
        sample = Sample(
            key=f"image-{index:05d}", image=stream.getvalue(), extension="jpg", mask=shards.encode_png(mask), label=1,
            kind="splice", source=(f"photo-{index}", f"donor-{index}"), unit=f"image-{index:05d}", split="test",
            meta=meta, pixels=shards.describe(crop, mask),
        )  # fmt: skip
        made.append(sample)
    return made


def ours(made: list[Sample], folder: Path) -> None:
    shards.write(folder / "ours", iter(made), name="bench", data="stand_in", version="1")


STABLE = {"mtime": 0, "user": "unforge", "group": "unforge"}


def plain(made: list[Sample], folder: Path, *, hashed: bool = False, **settings: object) -> None:
    pattern = str(folder / "plain" / "shard-%06d.tar")
    (folder / "plain").mkdir(exist_ok=True)
    with ShardWriter(pattern, maxsize=shards.SHARD_BYTES, verbose=0, encoder=False, **settings) as writer:
        for sample in made:
            document = {
                "key": sample.key, "label": sample.label, "kind": sample.kind, "source": list(sample.source),
                "unit": sample.unit, "split": sample.split, "meta": dict(sample.meta),
            }  # fmt: skip
            if hashed:
                document["image_sha256"] = hashlib.sha256(sample.image).hexdigest()
                document["mask_sha256"] = hashlib.sha256(sample.mask or b"").hexdigest()
            data = json.dumps(document, sort_keys=True).encode()
            writer.write({"__key__": sample.key, "jpg": sample.image, "json": data, "mask.png": sample.mask})


class Free:
    """A hash that costs nothing."""

    @staticmethod
    def hexdigest() -> str:
        return "0" * 64


@contextmanager
def without_hashing() -> Iterator[None]:
    real = shards.hashlib.sha256
    shards.hashlib.sha256 = lambda _: Free()  # type: ignore[assignment,misc,return-value]
    try:
        yield
    finally:
        shards.hashlib.sha256 = real  # type: ignore[misc]


def unhashed(made: list[Sample], folder: Path) -> None:
    with without_hashing():
        ours(made, folder)


def seconds(task: Callable[[], object]) -> float:
    begin = time.process_time()
    task()
    return time.process_time() - begin


def compare(name: str, bound: float | None, rounds: list[tuple[float, float]], images: int) -> None:
    """Print one line: median ratio ours / theirs, its range, and microseconds per image of both."""
    ratios = [left / right for left, right in rounds]
    line = {
        "figure": name,
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "bound": bound,
        "ours_us": round(statistics.median(left for left, _ in rounds) / images * 1e6, 1),
        "theirs_us": round(statistics.median(right for _, right in rounds) / images * 1e6, 1),
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    made = samples(options.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        times: dict[str, list[float]] = {}
        tasks: dict[str, Callable[[], object]] = {
            "plain": lambda: plain(made, folder),
            "ours": lambda: ours(made, folder),
            "stable": lambda: plain(made, folder, **STABLE),
            "hashed": lambda: plain(made, folder, hashed=True, **STABLE),
            "unhashed": lambda: unhashed(made, folder),
        }
        for index in range(options.rounds + 1):  # the first round warms up
            for task, run in tasks.items():
                took = seconds(run)
                if index:
                    times.setdefault(task, []).append(took)
        for title, left, right, bound in (
            ("write without hashing, to ShardWriter as it is", "unhashed", "plain", 1.10),
            ("write without hashing, to ShardWriter with fixed times and owners", "unhashed", "stable", 1.10),
            ("write with hashing, to ShardWriter as it is", "ours", "plain", 1.40),
            ("write with hashing, to ShardWriter with fixed times and owners", "ours", "stable", 1.40),
            ("write with hashing, to the same with SHA-256 in the JSON", "ours", "hashed", None),
        ):
            compare(title, bound, list(zip(times[left], times[right], strict=True)), options.images)

    def pillow() -> None:
        for sample in made:
            np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB"))

    def decode() -> None:
        for sample in made:
            shards.decode_image(sample.image)

    for sample in made[:20]:
        expected = np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB"))
        assert np.array_equal(shards.decode_image(sample.image), expected)
    decode()
    compare(
        "decode, to Pillow", 1.10, [(seconds(decode), seconds(pillow)) for _ in range(options.rounds)], options.images
    )


if __name__ == "__main__":
    main()
