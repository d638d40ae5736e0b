"""The benchmark script, small: it runs, says what it measured, and fails when a goal is missed."""

from __future__ import annotations

import json

import pytest

from benchmarks import aap, turns


def test_a_small_run_prints_every_figure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["aap", "--rounds", "1", "--batch", "3"])
    # a single round on a busy machine says nothing about time
    monkeypatch.setattr(aap, "GOAL", 100.0)
    monkeypatch.setattr(aap, "SIZE", 64)
    assert aap.main() == 0
    lines = {line["figure"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {name.split(":")[0] for name in lines} == {"training step", "prediction"}
    assert len(lines) == 5
    work = lines["prediction: multiply-adds over the black box"]
    assert work["met"]
    # P_phi 96 x 48 and 48 x 33 of 256 tokens, P_psi 3x3 from 1 to 32 to 64 channels on 16 x 16
    assert work["more"] == 256 * (96 * 48 + 48 * 33) + 256 * 9 * (32 + 32 * 64)


def test_goals_are_of_the_median() -> None:
    times = {"more": [1.0, 3.0, 1.1], "less": [1.0, 1.0, 1.0]}
    assert aap.report("a", times, "more", "less", 1.1)
    assert not aap.report("b", times, "more", "less", 1.09)
    assert aap.report("c", times, "more", "less", None)


def test_contenders_take_turns() -> None:
    order: list[str] = []
    times = turns.in_turn({name: lambda name=name: order.append(name) for name in "abc"}, 3)
    # one round to warm up, then three; each begins with another
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3, "c": 3}
