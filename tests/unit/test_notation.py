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
        ("8min32s", 512.0, 0.5),
        ("40s", 40.0, 0.5),
        ("-", None, 0.0),
    ],
)
def test_number_and_rounding(printed: str, value: float | None, half: float) -> None:
    assert notation.number(printed) == value
    assert notation.rounding(printed) == half


@pytest.mark.parametrize("printed", ["", "n/a", "0,5", "512×256", "<u>0.1</u>", "5 M", "8min", "8 min 32 s"])
def test_what_is_not_a_printed_number(printed: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        notation.number(printed)


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (50_352_000, "params", "50.35M"),
        (46.04e9, "macs", "46.04G"),
        (155.63e9, "flops", "155.6"),
        (512, "input_size", "512×512"),
        (0.8443, "macs_ratio", "0.844"),
        (0.5, "pixel_auc", "0.500"),
    ],
)
def test_show(value: float, metric: str, text: str) -> None:
    assert notation.show(value, metric) == text


def test_operations_are_printed_in_billions() -> None:
    assert notation.target("155.6", "flops") == 155.6e9
    assert notation.rounding("155.6", "flops") == pytest.approx(0.05e9)
    assert notation.target(None, "flops") is None


def test_numbers_of_a_supplement() -> None:
    assert [notation.numbered(name) for name in ("s1a", "s10", "3", "signals")] == ["S1a", "S10", "3", "signals"]
