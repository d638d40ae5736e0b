"""NIST Nimble Challenge 2016 (NC2016), manipulation part."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from unforge.datasets import layout
from unforge.types import Card, Found, Kind, StandIn

VERSION = "1"
KINDS: tuple[tuple[str, Kind], ...] = (
    ("IsManipulationTypeRemoval", "removal"),
    ("IsManipulationTypeSplice", "splice"),
    ("IsManipulationTypeCopyClone", "copy_move"),
)

CARD = Card(
    name="NIST16 (NC2016)",
    images={"splice": 288, "removal": 208, "copy_move": 68},
    licence="registration at NIST, no redistribution",
    redistribute=False,
    source="Guan et al.: MFC datasets, WACVW 2019; NIST Nimble Challenge 2016, NC2016_Test0613.",
    layout="probe/*.jpg, reference/manipulation/NC2016-manipulation-ref.csv (| separated: ProbeFileName, "
    "ProbeMaskFileName, BaseFileName, IsTarget, IsManipulationType*), reference/manipulation/mask/*.png; "
    "or a mirror with Tp/ and Gt/ (same file names, white is manipulated)",
    defects=(
        "in the official masks black is manipulated: inverted; in mirrors with Tp/ and Gt/ white is",
        "images of up to 5616 x 3744 pixels are kept as they are (mirrors shrink them to 1024, which changes results)",
        "near-duplicates within the set and across the common 404/160 split: images made from one base photograph "
        "share their source; unforge only tests on the set",
    ),
)

STAND_IN = StandIn(
    kinds={"authentic": 0.25, "splice": 0.35, "removal": 0.25, "copy_move": 0.15},
    split="test",
    extension="jpg",
    quality=(92, 99),
    feather=(0.5, 2.5),
    area=(0.01, 0.15),
    donors="polygon",
)


def find(root: Path) -> Iterator[Found]:
    """Rows of the official CSV layout, else of a mirror with Tp/ and Gt/.

    `meta["mask_inverted"]` is set where black is manipulated.
    """
    listing = layout.files(root)
    tables = [path for path in listing if path.lower().endswith("manipulation-ref.csv")]
    if tables:
        yield from _official(root, tables[0], set(listing))
        return
    images = [path for path in listing if layout.is_image(path)]
    masks = [path for path in images if layout.folder(path) in ("gt", "mask", "masks")]
    probes = [path for path in images if layout.folder(path) in ("tp", "probe", "probes")]
    paired = layout.pair(probes, masks, (("name", lambda path: layout.mask_stem(path).lower()),))
    for path in probes:
        mask, _ = paired.get(path, (None, ""))
        yield layout.tampered(root, path, mask, source=(f"nist16:{layout.stem(path)}",), kind="unknown")


def _official(root: Path, table: str, present: set[str]) -> Iterator[Found]:
    base = PurePosixPath(table).parents[2]
    with open(Path(root) / table, newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file, delimiter="|"))
    columns = {"IsTarget", "ProbeFileName", "ProbeMaskFileName", *(column for column, _ in KINDS)}
    if rows and columns - set(rows[0]):
        raise ValueError(f"{table} lacks the columns {', '.join(sorted(columns - set(rows[0])))}")
    for row in sorted(rows, key=lambda row: row["ProbeFileName"] or ""):
        image = (base / (row["ProbeFileName"] or "")).as_posix()
        source = (f"nist16:{layout.stem(row.get('BaseFileName') or image)}",)
        if row["IsTarget"] == "Y":
            mask = (base / row["ProbeMaskFileName"]).as_posix() if row["ProbeMaskFileName"] else None
            yield layout.tampered(
                root, image, mask, source=source, kind=_kind(row), meta={"mask_inverted": True}, present=present
            )
        else:
            yield layout.authentic(root, image, source=source, present=present)


def _kind(row: Mapping[str, str]) -> Kind:
    return next((kind for column, kind in KINDS if row[column] == "Y"), "unknown")
