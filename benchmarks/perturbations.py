"""Perturbations against the bare library call that gives the same pixels, and against albumentations' way.

    python benchmarks/perturbations.py [--rounds 15] [--images 24] [--stand-ins 1000]

One thread, CPU time, 481 x 321 px crops of photographs from packages. In every round all contenders of a level run
on the same images, in turn; a ratio is the median over rounds of (theirs / ours), so above 1 ours is faster, and
the bound "within 1.2 times the bare call" is a ratio of at least 0.83. Pixels are compared before timing.

albumentations is not a dependency. Its 1.3 way is written out here, as read in its source: noise is drawn in
float64 by a fresh RandomState, added in float64, clipped and cast; JPEG is OpenCV's on the array as it is, so on an
RGB image with red and blue swapped (same work, other pixels); blur is OpenCV's.
The last line is not a ratio: seconds to make stand-in images of 256 px, decoding the photographs included.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from unforge import forgeries, perturbations, seeds, shards
from unforge.datasets import casia2, photos

Way = Callable[[np.ndarray], np.ndarray]
HEIGHT, WIDTH = 321, 481


def jpeg_ways(level: int) -> dict[str, Way]:
    def opencv(image: np.ndarray) -> np.ndarray:
        _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, level])
        return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def pillow(image: np.ndarray) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=level)
        return np.asarray(Image.open(stream))

    def albumentations(image: np.ndarray) -> np.ndarray:
        _, data = cv2.imencode(".jpg", image, (int(cv2.IMWRITE_JPEG_QUALITY), level))
        return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)

    return {"bare OpenCV, channels in order": opencv, "bare Pillow": pillow, "albumentations 1.3's way": albumentations}


def blur_ways(level: int) -> dict[str, Way]:
    return {"bare OpenCV": lambda image: cv2.GaussianBlur(image, (level, level), 0)}


def resize_ways(level: float) -> dict[str, Way]:
    def opencv(image: np.ndarray) -> np.ndarray:
        size = (round(WIDTH * level), round(HEIGHT * level))
        small = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        return cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)

    return {"bare OpenCV": opencv}


def noise_ways(level: int) -> dict[str, Way]:
    numpy_rng = np.random.default_rng(0)

    def opencv(image: np.ndarray) -> np.ndarray:
        noise = np.empty(image.size, np.float32)
        cv2.setRNGSeed(int(generator().integers(2**31)))
        cv2.randn(noise, 0.0, level**0.5)
        return cv2.add(image, noise.reshape(image.shape), dtype=cv2.CV_8U)

    def numpy32(image: np.ndarray) -> np.ndarray:
        noise = numpy_rng.standard_normal(image.shape, dtype=np.float32) * np.float32(level**0.5)
        return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)

    def albumentations(image: np.ndarray) -> np.ndarray:
        noise = np.random.RandomState(7).normal(0, level**0.5, image.shape)
        return np.clip(image.astype(np.float32) + noise, 0, 255).astype(np.uint8)

    return {
        "bare OpenCV": opencv,
        "numpy float32, same distribution": numpy32,
        "albumentations 1.3's way": albumentations,
    }


WAYS: dict[str, Callable[..., dict[str, Way]]] = {
    "jpeg": jpeg_ways,
    "blur": blur_ways,
    "noise": noise_ways,
    "resize": resize_ways,
}
SAME = ("bare OpenCV", "bare OpenCV, channels in order", "bare Pillow")
"""These must give our pixels exactly."""


def generator() -> np.random.Generator:
    return seeds.generator(0, "image", "benchmark")


class Pool:
    """The photographs, in memory."""

    def __init__(self) -> None:
        self.files = {sample.key: sample.image for sample in photos.photographs()}
        self.rows = {}
        for sample in photos.photographs():
            width, height = Image.open(io.BytesIO(sample.image)).size
            row = {"source": list(sample.source), "split": sample.split, "width": width, "height": height}
            self.rows[sample.key] = row

    def image(self, key: str) -> np.ndarray:
        return shards.decode_image(self.files[key])


def crops(pool: Pool, count: int) -> list[np.ndarray]:
    rng, keys = np.random.default_rng(0), sorted(pool.rows)
    pictures = []
    for key in keys[: max(1, count // 2)]:
        whole = pool.image(key)
        whole = (
            cv2.resize(whole, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            if min(whole.shape[:2]) > 1000
            else whole
        )
        for _ in range(2):
            if whole.shape[0] >= HEIGHT and whole.shape[1] >= WIDTH:
                y, x = rng.integers(whole.shape[0] - HEIGHT + 1), rng.integers(whole.shape[1] - WIDTH + 1)
                pictures.append(np.ascontiguousarray(whole[y : y + HEIGHT, x : x + WIDTH]))
    return pictures[:count]


def compare(family: str, level: int | float, pictures: list[np.ndarray], rounds: int) -> None:
    module = perturbations.load(family)
    shared = generator()  # only noise draws from it, and there making it is part of the work of both
    ways: dict[str, Way] = {
        "ours": lambda image: module.apply(image, level, generator() if family == "noise" else shared),
        **WAYS[family](level),
    }
    for name in SAME:
        if name in ways:
            assert all(np.array_equal(ways["ours"](image), ways[name](image)) for image in pictures), (family, name)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for turn in range(rounds + 1):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            way = ways[name]
            started = time.process_time()
            for image in pictures:
                way(image)
            if turn:  # the first round warms up
                seconds[name].append((time.process_time() - started) / len(pictures))
    about = {"perturbation": family, "level": level}
    rate = round(1 / statistics.median(seconds["ours"]), 1)
    print(json.dumps({"figure": "images per second", **about, "value": rate}), flush=True)
    for name in order[1:]:
        ratios = sorted(theirs / mine for theirs, mine in zip(seconds[name], seconds["ours"], strict=True))
        line = {"figure": "times faster", **about, "than": name, "value": round(statistics.median(ratios), 2)}
        print(json.dumps(line | {"lowest": round(ratios[0], 2), "highest": round(ratios[-1], 2)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--stand-ins", type=int, default=1000)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    pool = Pool()
    pictures = crops(pool, arguments.images)
    for family, levels in {"jpeg": (70, 80), "noise": (5, 10), "blur": (7, 15), "resize": (0.5, 0.75)}.items():
        for level in levels:
            compare(family, level, pictures, arguments.rounds)
    started = time.process_time()
    for _ in forgeries.stand_in(casia2.STAND_IN, pool, arguments.stand_ins, 256, 0, "casia2"):
        pass
    line = {"figure": "seconds for stand-ins", "images": arguments.stand_ins, "size": 256}
    print(json.dumps(line | {"value": round(time.process_time() - started, 2)}))


if __name__ == "__main__":
    main()
