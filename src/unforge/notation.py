"""Numbers as papers print them, and measured values written the same way."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(r"(?P<digits>-?\d+(?:\.\d+)?)(?P<unit>[MG]?)")
_SIZE = re.compile(r"(?P<height>\d+)[×x](?P<width>\d+)")
_UNITS = {"": Decimal(1), "M": Decimal(10) ** 6, "G": Decimal(10) ** 9}


def number(printed: str) -> float | None:
    """The value of a printed string: `0.513`, `50.3M` (1e6), `46.2G` (1e9), `512×512` (512); None for a dash.

    As printed: `99.4` of a share in percent is 99.4 (see `target`).

    ValueError for anything else: the table cannot be compared with what it does not say.
    """
    if printed in ("-", "–", "—"):
        return None
    if size := _SIZE.fullmatch(printed):
        if size["height"] != size["width"]:
            raise ValueError(f"{printed!r} is not a square size")
        return float(size["height"])
    if match := _NUMBER.fullmatch(printed):
        return float(Decimal(match["digits"]) * _UNITS[match["unit"]])
    raise ValueError(f"{printed!r} is not a number as papers print it (0.513, 50.3M, 46.2G, 512×512, -)")


def target(printed: str | None, metric: str) -> float | None:
    """What a measured value is compared with, in the units of the metric; None when nothing is printed."""
    value = None if printed is None else number(printed)
    return value / 100 if value is not None and in_percent(metric) else value


def in_percent(metric: str) -> bool:
    """Whether a metric is printed in percent; it is measured in [0,1] all the same."""
    return metric.startswith("tpr@")


def rounding(printed: str) -> float:
    """Half a unit of the last printed digit: `0.513` 0.0005, `50.3M` 50,000; 0 for a size."""
    match = _NUMBER.fullmatch(printed)
    if match is None:
        return 0.0
    exponent = Decimal(match["digits"]).as_tuple().exponent
    return float(Decimal(5).scaleb(int(exponent) - 1) * _UNITS[match["unit"]])


def show(value: float, metric: str) -> str:
    """A measured value for people, in the paper's units: `50.35M`, `46.04G`, `512×512`, `0.513`, `99.4`
    (percent)."""
    match metric:
        case "params":
            return f"{value / 1e6:.2f}M"
        case "macs":
            return f"{value / 1e9:.2f}G"
        case "input_size":
            return f"{value:.0f}×{value:.0f}"
        case _:
            return f"{100 * value:.1f}" if in_percent(metric) else f"{value:.3f}"
