"""What the augmented inverse decoder sees: generated images, perturbed more and more in the course of training.

Source: iar_provenance, Table A2; released code, `augmentations.py`. Deviations: images stay 8-bit, as suspicious
images are; and each image of a batch draws for itself (released code: one operation and one level a batch).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from unforge import perturbations
from unforge.provenance.config import LEVELS, SCHEDULE

PROBABILITY = 0.5
"""That an image is perturbed at all, once there is a strength."""
SIGMA = (0.1, 2.0)
"""Range of a blur's sigma (pixels), drawn evenly."""


def strength(step: int, steps: int, schedule: Sequence[tuple[str, int]] = SCHEDULE) -> str:
    """Strength of step `step` (from 0) of a run of `steps`: each has the share of the run it has of the epochs."""
    if not 0 <= step < steps:
        raise ValueError(f"step {step} of {steps}")
    epoch = step * sum(length for _, length in schedule) / steps
    until = 0
    for name, length in schedule:
        until += length
        if epoch < until:
            return name
    raise ValueError(f"the schedule {list(schedule)} has no epochs")


def perturbed(image: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """`image` (S, S, 3) uint8 RGB, with probability 0.5 after one operation at one level of the strength `name`.

    All seven operations and all levels of an operation are equally likely. `none` leaves every image as it is.
    ValueError for another name.
    """
    if name == "none":
        return image
    if name not in LEVELS:
        raise ValueError(f"no strength {name!r}: there is none, {', '.join(LEVELS)}")
    if rng.random() >= PROBABILITY:
        return image
    operations = list(LEVELS[name])
    operation = operations[int(rng.integers(len(operations)))]
    levels = LEVELS[name][operation]
    return OPERATIONS[operation](image, levels[int(rng.integers(len(levels)))], rng)


def jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """A JPEG round trip (4:2:0)."""
    done: np.ndarray = perturbations.load("jpeg").apply(image, quality, rng)
    return done


def noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of `sigma` on the [0,1] scale."""
    done: np.ndarray = perturbations.load("noise").apply(image, (255 * sigma) ** 2, rng)
    return done


def blur(image: np.ndarray, kernel: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur with an odd kernel (pixels; 1 does nothing) and a sigma drawn from 0.1 to 2 pixels."""
    import cv2

    size = int(kernel)
    sigma = float(rng.uniform(*SIGMA))
    return image if size == 1 else cv2.GaussianBlur(image, (size, size), sigma)


def resize(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Shrunk by `factor` (sides rounded down) and enlarged again, bilinear, with antialiasing."""
    from PIL import Image

    height, width = image.shape[:2]
    small = Image.fromarray(image).resize(
        (max(1, int(width * factor)), max(1, int(height * factor))), Image.Resampling.BILINEAR
    )
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def brightness(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Every value times `factor`."""
    return _blended(image, np.float32(0), factor)


def contrast(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Every value's distance from the image's mean grey times `factor`."""
    return _blended(image, _grey(image).mean(dtype=np.float32), factor)


def saturation(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Every value's distance from its pixel's grey times `factor`."""
    return _blended(image, _grey(image)[..., None], factor)


OPERATIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    operation.__name__: operation for operation in (jpeg, blur, noise, brightness, saturation, resize, contrast)
}


@functools.cache
def _weights() -> np.ndarray:
    return np.array([0.2989, 0.587, 0.114], dtype=np.float32)


def _grey(image: np.ndarray) -> np.ndarray:
    grey: np.ndarray = image.astype(np.float32) @ _weights()
    return grey


def _blended(image: np.ndarray, base: np.ndarray | np.float32, factor: float) -> np.ndarray:
    """base + factor (image - base), rounded and clipped to 0-255."""
    values = base + np.float32(factor) * (image.astype(np.float32) - base)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
