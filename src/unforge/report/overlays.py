"""Pictures of masks: tints, outlines and heat over an image. Arrays in, arrays out; numpy and Pillow only.

Images are uint8 (H,W,3) RGB, masks bool (H,W), probabilities and attention float (H,W) in [0,1].
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

Array = np.ndarray

TRUTH = (0, 158, 115)
PREDICTED = (213, 94, 0)
"""Two colours of the Okabe-Ito palette, told apart with every common colour vision deficiency."""

_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)
"""Five stops of a perceptually ordered dark-to-light ramp, for attention."""


def outline(mask: Array, width: int = 1) -> Array:
    """Inner boundary of `mask` (H,W) bool, `width` pixels wide: mask minus its erosion. The frame is no boundary."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: Array = mask & ~inner
    return edge


def tint(image: Array, mask: Array, colour: tuple[int, int, int], opacity: float = 0.4) -> Array:
    """`image` with `colour` laid over the masked pixels; `opacity` in [0,1]."""
    over = image.astype(np.float64)
    over[mask] = (1 - opacity) * over[mask] + opacity * np.array(colour, dtype=np.float64)
    return np.rint(over).astype(np.uint8)


def overlay(image: Array, probability: Array | None, truth: Array | None = None) -> Array:
    """`image` with the predicted region (probability strictly above 0.5) tinted and outlined, and the truth outlined.

    Returns uint8 (H,W,3). ValueError when the sizes differ.
    """
    for name, layer in (("probability", probability), ("truth", truth)):
        if layer is not None and layer.shape != image.shape[:2]:
            raise ValueError(f"{name} is {layer.shape}, the image {image.shape[:2]}: bring them to one size first")
    width = -(-max(image.shape[:2]) // 120)
    shown = image
    if probability is not None:
        region = probability > 0.5
        shown = tint(shown, region, PREDICTED)
        shown = tint(shown, outline(region, width), PREDICTED, opacity=1.0)
    if truth is not None:
        shown = tint(shown, outline(truth, width), TRUTH, opacity=1.0)
    return shown


def heat(image: Array, weights: Array, anchor: tuple[float, float] | None = None, opacity: float = 0.65) -> Array:
    """`weights` (h,w), any size and range, as heat over the grey image, with a cross at `anchor`; `opacity` in [0,1].

    `anchor` is (x, y) in [0,1], the share of width and height. The weights are stretched to the image's
    size and to their own maximum, so colours compare places of one picture, never two pictures.
    """
    high, wide = image.shape[:2]
    top = float(weights.max())
    scaled = weights.astype(np.float64) / top if top > 0 else np.zeros(weights.shape)
    grid = Image.fromarray(np.rint(scaled * 255).astype(np.uint8))
    level = np.asarray(grid.resize((wide, high), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    stops = np.linspace(0, 1, len(_HEAT))
    colour = np.stack([np.interp(level, stops, _HEAT[:, channel]) for channel in range(3)], axis=-1)
    grey = image.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    shown: Array = np.rint((1 - opacity) * grey + opacity * colour).astype(np.uint8)
    if anchor is not None:
        column = min(wide - 1, max(0, round(anchor[0] * (wide - 1))))
        line = min(high - 1, max(0, round(anchor[1] * (high - 1))))
        arm, thick = max(3, max(high, wide) // 24), max(1, max(high, wide) // 160)
        for grow, paint in ((1, (0, 0, 0)), (0, (255, 255, 255))):
            half = thick + grow
            shown[max(0, line - half) : line + half + 1, max(0, column - arm - grow) : column + arm + grow + 1] = paint
            shown[max(0, line - arm - grow) : line + arm + grow + 1, max(0, column - half) : column + half + 1] = paint
    return shown


def thumbnail(array: Array, side: int, *, sharp: bool = False) -> Array:
    """`array` (uint8, grey or RGB), its longer side at most `side` pixels; `sharp` keeps mask values as they are."""
    high, wide = array.shape[:2]
    factor = side / max(high, wide)
    if factor >= 1:
        return array
    size = (max(1, round(wide * factor)), max(1, round(high * factor)))
    how = Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(array).resize(size, how))


def jpeg_uri(array: Array, quality: int = 82) -> str:
    """`array` as a JPEG data URI, without metadata: equal pixels, equal text."""
    return _uri(array, "jpeg", format="JPEG", quality=quality, optimize=True)


def png_uri(array: Array) -> str:
    """`array` as a PNG data URI, without metadata."""
    return _uri(array, "png", format="PNG", optimize=True)


def _uri(array: Array, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, **options)  # type: ignore[arg-type]
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
