"""What an image may suffer after it was forged, one family per module.

A module has `VERSION`, `LEVELS` (the field's common grid), `UNIT`, `apply(image, level, rng)` and, where the
perturbation is itself a file format, `encode(image, level, rng)`. `LEVELS` is what a robustness figure shows;
any valid level can be asked for by name. A perturbed test set is just another test set: `casia1~jpeg70`.
A fractional level is written with `_` for the point (`casia1~resize0_75`), so that no name has a suffix.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from types import ModuleType

import numpy as np

NAME = re.compile(r"([a-z][a-z0-9_]{0,31})~([a-z]+)(\d+(?:_\d+)?)")


def names() -> list[str]:
    """Every family."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(family: str) -> ModuleType:
    """The module of `family`. ValueError names the near ones when there is none."""
    if family not in names():
        near = difflib.get_close_matches(family, names(), n=3) or names()
        raise ValueError(f"no perturbation {family!r}: there is {', '.join(near)}")
    return importlib.import_module(f"{__name__}.{family}")


def name(testset: str, family: str, level: int | float) -> str:
    """Name of a perturbed test set: `name("casia1", "jpeg", 70)` is `casia1~jpeg70`."""
    text = f"{testset}~{family}{format(level, 'g').replace('.', '_')}"
    if NAME.fullmatch(text) is None or parse(text) != (testset, family, level):
        raise ValueError(f"{testset!r}, {family!r}, {level!r} make no name: levels are positive, with at most 6 digits")
    return text


def parse(text: str) -> tuple[str, str, int | float]:
    """Test set, family and level of a name. ValueError when it is not the name of a perturbed test set."""
    match = NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a perturbed test set: write <test set>~<family><level>, as in casia1~jpeg70")
    testset, family, digits = match.groups()
    return testset, family, float(digits.replace("_", ".")) if "_" in digits else int(digits)


def encode(family: str, image: np.ndarray, level: int | float, rng: np.random.Generator) -> tuple[bytes, str]:
    """File of the perturbed image and its extension: the format itself when the family is one, else a PNG.

    `image` is (H, W, 3) uint8, RGB. The decoded file equals `apply(image, level, rng)`.
    """
    module = load(family)
    if hasattr(module, "encode"):
        data, extension = module.encode(image, level, rng)
        return data, extension
    from unforge import shards

    return shards.encode_png(module.apply(image, level, rng)), "png"
