"""The benchmark script, small: it runs, says what it measured, and fails when a goal is missed."""

from __future__ import annotations

import json

import pytest

from benchmarks import provenance


def test_a_small_run_prints_every_figure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["provenance", "--small", "--rounds", "1", "--parts", "var,nearest,search"])
    assert provenance.main() == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ratios = {line["figure"]: line["ratio"] for line in lines if line["figure"].startswith("var:")}
    assert set(ratios) == {"var: quant_loss / reconstruction", "var: quant_loss / aedr", "var: signals / aedr"}
    assert ratios["var: quant_loss / aedr"] < ratios["var: quant_loss / reconstruction"]
    same = [line for line in lines if "identical indices" in line["figure"]]
    assert len(same) == 4
    assert all(line["met"] for line in same)
    (memory,) = (line for line in lines if line["figure"].startswith("token search"))
    assert 0 < memory["GiB"] < 0.2


def test_goals_are_of_the_median_and_a_miss_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert provenance.report("a", "ratio", [0.9, 0.1, 0.3], 0.3)
    assert not provenance.report("b", "ratio", [0.9, 0.1, 0.31], 0.3)
    assert not provenance.report("c", "ratio", [1.2, 1.4, 1.2], 1.3, at_least=True)
    assert provenance.report("d", "ratio", [9.0], None)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("met") for line in lines] == [True, False, False, None]
    assert lines[1]["range"] == [0.1, 0.9]


def test_contenders_take_turns_at_being_first_and_one_round_warms_up() -> None:
    calls: list[str] = []
    times = provenance.in_turn({name: lambda name=name: calls.append(name) for name in "abc"}, 2)
    assert calls == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_unknown_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["provenance", "--parts", "dalle"])
    with pytest.raises(SystemExit):
        provenance.main()
