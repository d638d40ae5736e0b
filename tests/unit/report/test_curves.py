"""Figure 6 as SVG: one panel per perturbation, one line and one band per series, stable bytes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pyarrow as pa

from tests.unit.report import made
from unforge.report import curves

SVG = "{http://www.w3.org/2000/svg}"


def drawn(rows: list[dict[str, object]]) -> ET.Element:
    return ET.fromstring(curves.svg(pa.Table.from_pylist(rows, schema=made.POINT), metric="pixel_f1@0.5", salt="a"))


def test_panels_series_and_levels_are_named() -> None:
    words = ["".join(node.itertext()).strip() for node in drawn(made.points()).iter(f"{SVG}text")]
    for expected in ("JPEG", "BLUR", "SparseViT full", "SparseViT stem", "pixel_f1@0.5", "100", "90", "70", "3", "7"):
        assert expected in words
    jpeg = [word for word in words if word in ("100", "90", "70")]
    assert jpeg == ["100", "90", "70"]


def test_there_is_a_line_and_a_band_for_each_series_and_panel() -> None:
    ids = [node.attrib["id"] for node in drawn(made.points()).iter() if "id" in node.attrib]
    assert len([name for name in ids if name.startswith("a-FillBetweenPolyCollection")]) == 4
    assert len([name for name in ids if name.startswith("a-axes_")]) == 2


def test_falling_levels_run_to_the_right() -> None:
    places = {}
    for node in drawn(made.points()).iter(f"{SVG}text"):
        word = "".join(node.itertext()).strip()
        if word in ("100", "70"):
            places[word] = float(node.attrib["x"])
    assert places["100"] < places["70"]


def test_equal_data_gives_equal_bytes_and_no_date() -> None:
    table = pa.Table.from_pylist(made.points(), schema=made.POINT)
    first = curves.svg(table, metric="m", salt="a")
    assert curves.svg(table, metric="m", salt="a") == first
    assert curves.svg(table, metric="m", salt="b") != first
    for absent in ("<metadata", "<!--", "<?xml"):
        assert absent not in first
    assert set(re.findall(r"https?://[^\"]*", first)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_points_without_a_value_are_left_out_and_an_empty_figure_is_drawn() -> None:
    rows = [row | {"measured": None, "ci_low": None, "ci_high": None} for row in made.points()]
    words = ["".join(node.itertext()).strip() for node in drawn(rows).iter(f"{SVG}text")]
    assert "JPEG" in words
    assert "100" not in words


def test_every_reference_finds_its_element_under_the_figures_own_prefix() -> None:
    text = curves.svg(pa.Table.from_pylist(made.points(), schema=made.POINT), metric="m", salt="paper.figure_6")
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(set(ids)) == len(ids)
    assert {name.partition("-")[0] for name in ids} == {"paper.figure_6"}
    references = set(re.findall(r'(?:url\(#|href="#)([^")]*)', text))
    assert references
    assert references <= set(ids)
