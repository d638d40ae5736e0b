"""Numbers as papers print them."""

from __future__ import annotations

import pytest

from unforge import notation


@pytest.mark.parametrize(
    ("printed", "value", "half"),
    [
        ("0.513", 0.513, 0.0005),
        ("1.00", 1.0, 0.005),
        ("50.3M", 50_300_000.0, 50_000.0),
        ("46.2G", 46_200_000_000.0, 50_000_000.0),
        ("274.0G", 274e9, 50_000_000.0),
        ("85", 85.0, 0.5),
        ("512×512", 512.0, 0.0),
        ("256x256", 256.0, 0.0),
        ("-", None, 0.0),
    ],
)
def test_number_and_rounding(printed: str, value: float | None, half: float) -> None:
    assert notation.number(printed) == value
    assert notation.rounding(printed) == half


@pytest.mark.parametrize("printed", ["", "n/a", "0,5", "512×256", "<u>0.1</u>", "5 M"])
def test_what_is_not_a_printed_number(printed: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        notation.number(printed)


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (50_352_000, "params", "50.35M"),
        (46.04e9, "macs", "46.04G"),
        (512, "input_size", "512×512"),
        (0.8443, "macs_ratio", "0.844"),
        (0.5, "pixel_auc", "0.500"),
    ],
)
def test_show(value: float, metric: str, text: str) -> None:
    assert notation.show(value, metric) == text
