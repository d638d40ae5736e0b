"""When a rebuilt cell is the committed one."""

from __future__ import annotations

import pytest

from flows import rebuild


@pytest.mark.parametrize(
    ("value", "expected"), [(0.2, True), (0.1, True), (0.45, True), (0.09, False), (0.46, False), (None, False)]
)
def test_a_value_of_another_machine_must_lie_in_the_interval(value: float | None, expected: bool) -> None:
    cell = {"ci_low": 0.15, "ci_high": 0.4}
    assert rebuild.within(cell, value, 0.05) is expected


def test_a_cell_without_an_interval_has_no_room() -> None:
    assert not rebuild.within({"ci_low": None, "ci_high": None}, 1.0, 0.1)
