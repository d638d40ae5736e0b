"""Numbers as papers print them, and measured values written the same way."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(r"(?P<digits>-?\d+(?:\.\d+)?)(?P<unit>[MG%]?)(?:\((?P<gain>[+-]\d+(?:\.\d+)?)\))?")
_SIZE = re.compile(r"(?P<height>\d+)[×x](?P<width>\d+)")
_TIME = re.compile(r"(?:(?P<minutes>\d+)min)?(?P<seconds>\d+)s")
_GIGA = 10**9
_UNITS = {"": Decimal(1), "%": Decimal(1), "M": Decimal(10) ** 6, "G": Decimal(10) ** 9}


def number(printed: str) -> float | None:
    """The value of a printed string: `0.513`, `50.3M` (1e6), `46.2G` (1e9), `512×512` (512), `8min32s` (512 seconds);
    None for a dash.

    As printed: `99.4`, `99.4%` and `99.4%(+0.5)` of a share in percent are 99.4 (see `target` and `gain`).

    ValueError for anything else: the table cannot be compared with what it does not say.
    """
    if printed in ("-", "–", "—"):
        return None
    if size := _SIZE.fullmatch(printed):
        if size["height"] != size["width"]:
            raise ValueError(f"{printed!r} is not a square size")
        return float(size["height"])
    if time := _TIME.fullmatch(printed):
        return 60.0 * int(time["minutes"] or 0) + int(time["seconds"])
    if match := _NUMBER.fullmatch(printed):
        return float(Decimal(match["digits"]) * _UNITS[match["unit"]])
    shapes = "0.513, 50.3M, 46.2G, 91.56%(+3.25), 512×512, 8min32s, -"
    raise ValueError(f"{printed!r} is not a number as papers print it ({shapes})")


def target(printed: str | None, metric: str, percent: bool = False) -> float | None:
    """What a measured value is compared with, in the units of the metric; None when nothing is printed.

    `percent`: the table prints shares in percent. Operations are printed in billions (`155.6`), by their column's name.
    """
    value = None if printed is None else number(printed)
    if value is not None and metric == "flops":
        return value * _GIGA
    return value / 100 if value is not None and (percent or in_percent(metric)) else value


def in_percent(metric: str) -> bool:
    """Whether every table prints a metric in percent; it is measured in [0,1] all the same."""
    return metric.startswith("tpr@")


def gain(printed: str) -> str | None:
    """The difference that is printed beside a number: `+3.25` of `91.56%(+3.25)`; None where there is none."""
    match = _NUMBER.fullmatch(printed)
    return match["gain"] if match else None


def decimals(printed: str) -> int:
    """Digits after the point: 2 of `91.56%(+3.25)`, 0 of `85` and of a size."""
    match = _NUMBER.fullmatch(printed)
    return len(match["digits"].partition(".")[2]) if match else 0


def rounding(printed: str, metric: str = "") -> float:
    """Half a unit of the last printed digit, in the units of the metric: `0.513` 0.0005, `50.3M` 50,000, of a time half
    a second; 0 for a size."""
    match = _NUMBER.fullmatch(printed)
    if match is None:
        return 0.5 if _TIME.fullmatch(printed) else 0.0
    if metric == "flops":
        return rounding(printed) * _GIGA
    exponent = Decimal(match["digits"]).as_tuple().exponent
    return float(Decimal(5).scaleb(int(exponent) - 1) * _UNITS[match["unit"]])


def show(value: float, metric: str, percent: bool = False) -> str:
    """A measured value for people, in the paper's units: `50.35M`, `46.04G`, `512×512`, `0.513`, `99.4`
    (percent, where the table prints it so)."""
    match metric:
        case "params":
            return f"{value / 1e6:.2f}M"
        case "macs":
            return f"{value / 1e9:.2f}G"
        case "flops":
            return f"{value / _GIGA:.1f}"
        case "input_size":
            return f"{value:.0f}×{value:.0f}"
        case _:
            return f"{100 * value:.1f}" if percent or in_percent(metric) else f"{value:.3f}"


def numbered(name: str) -> str:
    """The number of a table or figure as it is written: `S1a` of `s1a`, a supplement's; any other as it is."""
    return re.sub(r"^s(?=\d)", "S", name)
