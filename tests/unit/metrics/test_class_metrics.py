"""Three-class accuracy and F1 against scikit-learn, and the class that a mask says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score

from tests.unit.metrics.score_rows import table
from unforge import metrics
from unforge.metrics.class_acc import CLASSES, predicted, truth

KINDS = ("authentic", "generated", "regenerated")


def row(true: int, said: int | None = None, foreground: int | None = None, **more: Any) -> dict[str, Any]:
    """An image of class `true` with class probabilities for `said`, or a mask with `foreground` of 1,000 pixels."""
    made: dict[str, Any] = {"label": int(true > 0), "kind": KINDS[true]}
    if said is not None:
        made["class_probs"] = [0.6 if i == said else 0.2 for i in range(3)]
    if foreground is not None:
        counts = (0, foreground, 0, 1000 - foreground) if true != 1 else (foreground, 0, 1000 - foreground, 0)
        made |= dict(zip(("tp", "fp", "fn", "tn"), counts, strict=True))
    return made | more


def value(rows: list[dict[str, Any]], metric: str) -> float | None:
    return metrics.estimate([table(rows)], metric, seed=0, replicates=5).value


pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_against_scikit_learn(said: list[tuple[int, int]]) -> None:
    rows = [row(true, given) for true, given in said]
    true, named = np.array(said).T
    assert value(rows, "class_acc@total") == pytest.approx(accuracy_score(true, named))
    recalls = recall_score(true, named, labels=[0, 1, 2], average=None, zero_division=0)
    f1s = f1_score(true, named, labels=[0, 1, 2], average=None, zero_division=0)
    for which, name in enumerate(CLASSES):
        there = which in true
        for metric, expected in ((f"class_acc@{name}", recalls), (f"class_f1@{name}", f1s)):
            assert value(rows, metric) == (pytest.approx(expected[which]) if there else None), metric
    every = set(true) == {0, 1, 2}
    assert value(rows, "class_acc@macro") == (pytest.approx(recalls.mean()) if every else None)
    assert value(rows, "class_f1@macro") == (pytest.approx(f1s.mean()) if every else None)


def test_macro_and_total_differ_where_classes_do() -> None:
    rows = [row(0, 0)] * 8 + [row(1, 0), row(2, 2)]
    rows = [{**each, "key": f"k{i}"} for i, each in enumerate(rows)]
    assert value(rows, "class_acc@total") == pytest.approx(0.9)
    assert value(rows, "class_acc@macro") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("foreground", "said"),
    [(0, 0), (4, 0), (5, 2), (500, 2), (995, 2), (996, 1), (1000, 1)],  # of 1,000: 0.5 % either way
)
@pytest.mark.parametrize("true", [0, 1, 2])
def test_the_class_is_read_from_the_mask(true: int, foreground: int, said: int) -> None:
    columns = metrics.Columns.of(table([row(true, foreground=foreground)]))
    assert truth(columns).tolist() == [true]
    assert predicted(columns).tolist() == [said]


def test_class_probabilities_go_before_the_mask() -> None:
    columns = metrics.Columns.of(table([row(2, said=1, foreground=0)]))
    assert predicted(columns).tolist() == [1]


def test_every_manipulation_is_tampered_and_label_0_is_real() -> None:
    kinds = ("splice", "copy_move", "removal", "regenerated", "history", "unknown", "generated")
    rows = [{"kind": kind, "label": 1, "class_probs": [0.0, 0.0, 1.0]} for kind in kinds]
    columns = metrics.Columns.of(table([*rows, {"kind": "unknown", "label": 0, "class_probs": [1.0, 0.0, 0.0]}]))
    assert truth(columns).tolist() == [2, 2, 2, 2, 2, 2, 1, 0]


def test_rows_that_say_nothing_do_not_count() -> None:
    rows = [row(0, 0), row(1, 1), row(2, 2), row(2)]
    estimate = metrics.estimate([table(rows)], "class_acc@macro", seed=0, replicates=5)
    assert (estimate.value, estimate.n) == (1.0, 3)
    assert value([row(0), row(1)], "class_acc@total") is None


def test_probabilities_of_two_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 numbers.*real, synthetic, tampered"):
        value([row(0, class_probs=[0.5, 0.5])], "class_f1@macro")
