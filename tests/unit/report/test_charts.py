"""Bars and profiles as SVG: what is named is drawn, and equal points give equal bytes."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from unforge.report import charts

NAMES = ("panel", "panel_label", "level", "series", "series_label", "measured", "ci_low", "ci_high")


def points(*rows: tuple[object, ...]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(NAMES, row, strict=True)) for row in rows])


TYPES = points(
    ("splice", "splice", 0.0, "a", "Ours & theirs", 0.5, 0.4, 0.6),
    ("splice", "splice", 0.0, "b", "Other", 0.2, None, None),
    ("removal", "removal", 0.0, "a", "Ours & theirs", None, None, None),
    ("removal", "removal", 0.0, "b", "Other", 0.9, 0.8, 1.0),
)
LAYERS = points(
    ("splice", "splice", 2.0, "a", "Ours", 1.5, 1.2, 1.7),
    ("removal", "removal", 4.0, "a", "Ours", 0.7, 0.6, 0.8),
)
CODES = points(
    ("usage", "share", 0.0, "masks", "masks", 0.6, None, None),
    ("usage", "share", 1.0, "masks", "masks", 0.4, None, None),
    ("similar", "share", 0.95, "masks", "masks", 0.3, None, None),
)

WEIGHED = points(
    ("weights", "weight of FLCL", 0.0, "cdf_v2", "CDF-v2", 0.7, 0.6, 0.8),
    ("weights", "weight of FLCL", 0.0, "mean", "Average", 0.7, 0.6, 0.8),
    ("weights", "weight of FLCL", 0.14, "cdf_v2", "CDF-v2", 0.9, 0.8, 0.95),
    ("weights", "weight of FLCL", 0.14, "mean", "Average", 0.9, 0.8, 0.95),
)
QUANTILES = points(
    ("real", "real images", 0.0, "cls", "[CLS] token", 0.2, 0.1, 0.3),
    ("real", "real images", 1.0, "cls", "[CLS] token", 4.0, 3.0, 5.0),
)


@pytest.mark.parametrize(
    ("kind", "data", "words", "bars"),
    [
        ("by_type", TYPES, ["splice", "removal", "Ours &amp; theirs", "Other", "pixel_f1@0.5"], 3),
        ("signals_by_type", LAYERS, ["layer 2", "layer 4", "splice", "removal"], 2),
        ("codebook", CODES, ["rank of the code", "IoU of two masks"], 0),
        ("weights", WEIGHED, ["weight of FLCL", "CDF-v2", "Average", "pixel_f1@0.5", ">0.14<"], 0),
        ("quantiles", QUANTILES, ["[CLS] token", "even attention", "share of the patches"], 0),
    ],
)
def test_every_kind_is_drawn(kind: str, data: pa.Table, words: list[str], bars: int) -> None:
    drawn = charts.svg(data, kind=kind, metric="pixel_f1@0.5", salt=f"toy.{kind}")
    ElementTree.fromstring(drawn)
    for word in words:
        assert word in drawn
    colours = re.findall(r'<path d="[^"]*z\s*"[^>]*fill: #(?:0072b2|d55e00)', drawn)
    assert len(colours) >= bars
    assert drawn == charts.svg(data, kind=kind, metric="pixel_f1@0.5", salt=f"toy.{kind}")


def test_of_weights_the_average_alone_has_a_band() -> None:
    drawn = charts.svg(WEIGHED, kind="weights", metric="video_auc", salt="toy")
    assert len(re.findall("fill-opacity: 0.1", drawn)) == 1
    drawn = charts.svg(QUANTILES, kind="quantiles", metric=None, salt="toy")
    assert len(re.findall("fill-opacity: 0.1", drawn)) == 1


def test_nothing_measured_is_drawn_as_nothing() -> None:
    empty = points(("splice", "splice", 0.0, "a", "Ours", None, None, None))
    assert "<svg" in charts.svg(empty, kind="by_type", metric="x", salt="toy")
    assert "<svg" in charts.svg(empty, kind="codebook", metric=None, salt="toy")
    for kind in ("weights", "quantiles"):
        assert "<svg" in charts.svg(empty, kind=kind, metric="x", salt="toy")
