"""What happens to a training image: small named operations, applied in the order a recipe names them.

An operation is `f(image, mask, rng, size) -> (image, mask)` with `image` (H, W, 3) uint8 RGB, `mask` (H, W)
bool, `size` the side of a training image in pixels. It changes neither argument, draws from `rng` only, and
the same draws give the same pixels. Probabilities and ranges are those of the released SparseViT training
code unless the docstring says otherwise.
"""

from __future__ import annotations

import io
from types import ModuleType

import numpy as np

GRID = 8
"""Side of a JPEG block (pixels)."""
DEFAULT = ("dihedral",)
"""For a recipe that names no operation: nothing that touches a pixel's value."""


def apply(
    names: tuple[str, ...], image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the operations in order; the result must be (size, size). ValueError names an unknown operation."""
    for name in names:
        if name not in OPERATIONS:
            raise ValueError(f"no augmentation {name!r}: there is {', '.join(sorted(OPERATIONS))}")
        image, mask = OPERATIONS[name](image, mask, rng, size)
    if image.shape[:2] != (size, size):
        raise ValueError(
            f"augmentation {names} gives {image.shape[1]}x{image.shape[0]} pixels, not {size}: end with crop or resize"
        )
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def crop(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A square of `size` whose corner lies on the image's 8-pixel JPEG grid. A smaller image is continued
    by its edge pixels, with mask 0; one of this size is left as it is."""
    image, mask = _at_least(image, mask, size)
    y = GRID * int(rng.integers((image.shape[0] - size) // GRID + 1))
    x = GRID * int(rng.integers((image.shape[1] - size) // GRID + 1))
    return image[y : y + size, x : x + size], mask[y : y + size, x : x + size]


def dihedral(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One of the 8 flips and quarter turns, equally likely."""
    choice = int(rng.integers(8))
    image, mask = _turn(image, mask, choice % 4)
    return (image[:, ::-1], mask[:, ::-1]) if choice >= 4 else (image, mask)


def scale(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Both sides scaled by one factor of [0.8, 1.2]; image bilinear, mask nearest."""
    factor = rng.uniform(0.8, 1.2)
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return _resized(image, mask, height, width)


def copy_move(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """With probability 0.1 a rectangle is copied elsewhere in the image, and its new place is manipulated.

    ASSUMPTION(paper): sides are 5 to 80 % of the image's.
    """
    if rng.random() >= 0.1:
        return image, mask
    height, width = _sides(image, rng)
    (y, x), (to_y, to_x) = _corner(image, height, width, rng), _corner(image, height, width, rng)
    image, mask = image.copy(), mask.copy()
    image[to_y : to_y + height, to_x : to_x + width] = image[y : y + height, x : x + width].copy()
    mask[to_y : to_y + height, to_x : to_x + width] = True
    return image, mask


def inpaint(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """With probability 0.1 a rectangle is manipulated: inpainted by OpenCV (Telea or Navier-Stokes, radius 3 pixels).

    ASSUMPTION(paper): sides are 5 to 80 % of the image's, as for copy-move.
    """
    if rng.random() >= 0.1:
        return image, mask
    cv2 = _cv2()
    height, width = _sides(image, rng)
    y, x = _corner(image, height, width, rng)
    method = cv2.INPAINT_TELEA if rng.random() < 0.5 else cv2.INPAINT_NS
    hole = np.zeros(mask.shape, dtype=np.uint8)
    hole[y : y + height, x : x + width] = 255
    return cv2.inpaint(np.ascontiguousarray(image), hole, 3, method), mask | (hole > 0)


def flip_horizontal(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Left and right change places with probability 0.5."""
    return (image[:, ::-1], mask[:, ::-1]) if rng.random() < 0.5 else (image, mask)


def flip_vertical(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Top and bottom change places with probability 0.5."""
    return (image[::-1], mask[::-1]) if rng.random() < 0.5 else (image, mask)


def brightness_contrast(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """image * a + 255 * b with a of [0.9, 1.1] and b of [-0.1, 0.1], rounded and clipped to 0-255."""
    contrast, brightness = rng.uniform(0.9, 1.1), rng.uniform(-0.1, 0.1)
    values = np.rint(np.arange(256) * contrast + 255 * brightness)
    return np.clip(values, 0, 255).astype(np.uint8)[image], mask


def jpeg(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """With probability 0.2 a JPEG round trip at a quality of 70 to 100 (Pillow, 4:2:0)."""
    if rng.random() >= 0.2:
        return image, mask
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(
        stream, format="JPEG", quality=int(rng.integers(70, 101)), subsampling="4:2:0"
    )
    return np.asarray(Image.open(stream)), mask


def rotate90(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """With probability 0.5 turned by 0 to 3 quarter turns, equally likely."""
    return _turn(image, mask, int(rng.integers(4))) if rng.random() < 0.5 else (image, mask)


def blur(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """With probability 0.2 a Gaussian blur with a kernel of 3, 5 or 7 pixels; OpenCV's sigma for the kernel."""
    if rng.random() >= 0.2:
        return image, mask
    kernel = 3 + 2 * int(rng.integers(3))
    return _cv2().GaussianBlur(np.ascontiguousarray(image), (kernel, kernel), 0), mask


def resize(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole image to (size, size), without keeping its proportions; image bilinear, mask nearest."""
    return _resized(image, mask, size, size)


OPERATIONS = {
    operation.__name__: operation
    for operation in (
        crop,
        dihedral,
        scale,
        copy_move,
        inpaint,
        flip_horizontal,
        flip_vertical,
        brightness_contrast,
        jpeg,
        rotate90,
        blur,
        resize,
    )
}


def _cv2() -> ModuleType:
    """OpenCV on one thread: parallelism comes from workers and from stages side by side."""
    import cv2

    cv2.setNumThreads(1)
    return cv2


def _turn(image: np.ndarray, mask: np.ndarray, quarters: int) -> tuple[np.ndarray, np.ndarray]:
    return np.rot90(image, quarters), np.rot90(mask, quarters)


def _at_least(image: np.ndarray, mask: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    below, beside = max(0, size - image.shape[0]), max(0, size - image.shape[1])
    if not below and not beside:
        return image, mask
    return np.pad(image, ((0, below), (0, beside), (0, 0)), mode="edge"), np.pad(mask, ((0, below), (0, beside)))


def _resized(image: np.ndarray, mask: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    cv2 = _cv2()
    if image.shape[:2] == (height, width):
        return image, mask
    small = cv2.resize(np.ascontiguousarray(mask).view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR), small > 0


def _sides(image: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width of a rectangle of 5 to 80 % of the image's sides."""
    low, high = (int(max(1, share * image.shape[0])) for share in (0.05, 0.8))
    left, right = (int(max(1, share * image.shape[1])) for share in (0.05, 0.8))
    return int(rng.integers(low, high + 1)), int(rng.integers(left, right + 1))


def _corner(image: np.ndarray, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(image.shape[0] - height + 1)), int(rng.integers(image.shape[1] - width + 1))
