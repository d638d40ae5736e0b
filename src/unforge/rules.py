"""Rules that printed numbers obey: bounds, averages, one value for one quantity. Nothing is measured.

Every rule allows for rounding: a finding holds whatever the digits behind the printed ones were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, product

from unforge import notation, specs
from unforge.metrics.class_acc import CLASSES

SLACK = 1e-9
"""For the arithmetic of binary fractions; far below any printed digit."""

SHARES = 0.05
"""How far, relatively, the classes of a test set may be from one size (SID-Set: 100,000 images each)."""


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One printed number, as the interval of values that round to it."""

    table: str
    row: str
    column: str
    subject: str
    """What the row is about: the same in every table of the paper."""
    metric: str
    testsets: tuple[str, ...]
    part: str
    relative_to: str | None
    text: str
    low: float
    high: float
    percent: bool = False
    """Printed in percent; `low` and `high` are in [0,1] all the same."""
    parts: tuple[str, ...] = ()
    """Columns of the same row that this one is the mean of."""
    gain_over: str = ""
    """Row of the same table over which the gain is that stands beside the number."""

    @property
    def place(self) -> str:
        return f"{self.table} {self.row}.{self.column}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One rule broken by one printed number."""

    at: Printed
    rule: str
    detail: str


def ranges(numbers: list[Printed]) -> Iterator[Finding]:
    """A metric lies in [0,1], a count is positive."""
    for number in numbers:
        if number.metric in specs.COUNTS:
            if number.high <= 0:
                yield Finding(at=number, rule="range", detail=f"{number.text} is not positive")
        elif number.low > 1 + SLACK or number.high < -SLACK:
            yield Finding(at=number, rule="range", detail=f"{number.text} is outside [0,1]")


PAIRS = {
    "pixel_f1@0.5": "pixel_iou",
    "pixel_f1@tampered": "pixel_iou@tampered",
    "pixel_f1_pooled@tampered": "ciou@tampered",
}
"""Each F1 and the IoU of the same pixels."""


def f1_and_iou(numbers: list[Printed]) -> Iterator[Finding]:
    """IoU <= F1 <= 2 IoU / (1 + IoU) on the same images: equal per image, and the mean keeps the order (Jensen).

    A pair that is printed again in another table is one finding.
    """
    iou: dict[tuple[object, ...], list[Printed]] = {}
    for n in numbers:
        if n.metric in PAIRS.values():
            iou.setdefault((n.subject, n.metric, n.testsets), []).append(n)
    pairs: dict[tuple[object, ...], list[tuple[Printed, Printed]]] = {}
    for n in numbers:
        others = iou.get((n.subject, PAIRS.get(n.metric), n.testsets), [])
        if others:
            other = next((o for o in others if o.table == n.table), others[0])
            pairs.setdefault((n.subject, n.metric, n.testsets, n.text, other.text), []).append((n, other))
    for (number, other), *again in pairs.values():
        most = 2 * other.high / (1 + other.high)
        also = _also(repeated for repeated, _ in again)
        if number.low > most + SLACK:
            detail = f"F1 {number.text} with IoU {other.text} ({other.place}): at most {most:.4f}{also}"
            yield Finding(at=number, rule="f1_above_bound", detail=detail)
        if number.high < other.low - SLACK:
            detail = f"F1 {number.text} is below IoU {other.text} ({other.place}){also}"
            yield Finding(at=number, rule="f1_below_iou", detail=detail)


def averages(numbers: list[Printed]) -> Iterator[Finding]:
    """A printed average is the mean of the numbers printed for its test sets, in its own table or in another."""
    single = {(n.subject, n.metric, n.testsets[0], n.table): n for n in numbers if len(n.testsets) == 1}
    beside = {(n.table, n.row, n.column): n for n in numbers}
    places = sorted({n.table for n in numbers})
    for number in numbers:
        if number.metric == specs.MEAN:
            parts = [beside[key] for part in number.parts if (key := (number.table, number.row, part)) in beside]
            yield from _averaged(number, parts if len(parts) == len(number.parts) else [], "")
        if len(number.testsets) < 2 or number.metric == specs.MEAN:
            continue
        for place in [number.table] + [name for name in places if name != number.table]:
            keys = [(number.subject, number.metric, testset, place) for testset in number.testsets]
            if all(key in single for key in keys):
                yield from _averaged(number, [single[key] for key in keys], f" ({place})")
                break


def _averaged(number: Printed, parts: list[Printed], where: str) -> Iterator[Finding]:
    if not parts:
        return
    low, high = mean(part.low for part in parts), mean(part.high for part in parts)
    if number.low > high + SLACK or number.high < low - SLACK:
        texts = ", ".join(part.text for part in parts)
        detail = f"{number.text} is not the mean of {texts}{where}: {shown((low + high) / 2, number)}"
        yield Finding(at=number, rule="average", detail=detail)


def contradictions(numbers: list[Printed]) -> Iterator[Finding]:
    """One quantity has one value, wherever it is printed. Two values are one finding, however often they are printed.

    Intervals that only touch (0.59 and 0.60) contradict too: no rule of rounding prints one value both ways.
    """
    same: dict[tuple[object, ...], dict[str, list[Printed]]] = {}
    for n in numbers:
        key = (n.subject, n.metric, n.testsets, n.part, n.relative_to)
        same.setdefault(key, {}).setdefault(n.text, []).append(n)
    for by_text in same.values():
        for (first, *others), (second, *again) in combinations(by_text.values(), 2):
            if min(first.high, second.high) - max(first.low, second.low) <= SLACK:
                detail = f"{second.text} here{_also(again)}, {first.text} in {_places([first, *others])}"
                yield Finding(at=second, rule="contradiction", detail=detail)


def ratios(numbers: list[Printed]) -> Iterator[Finding]:
    """A printed ratio is 1 for its own reference, and agrees with the two counts where the paper prints both."""
    counts = {(n.subject, n.metric, n.part): n for n in numbers if n.metric in specs.COUNTS and n.relative_to is None}
    for number in numbers:
        if number.relative_to is None:
            continue
        reference = f"{number.subject.partition('/')[0]}/{number.relative_to or 'full'}"
        if number.subject == reference:
            if not number.low - SLACK <= 1 <= number.high + SLACK:
                yield Finding(at=number, rule="ratio", detail=f"{number.text} for the row that is counted as 1")
            continue
        what = number.metric.removesuffix("_ratio")
        own, whole = (counts.get((subject, what, number.part)) for subject in (number.subject, reference))
        if own is None or whole is None or whole.low <= 0:
            continue
        low, high = own.low / whole.high, own.high / whole.low
        if number.low > high + SLACK or number.high < low - SLACK:
            detail = f"{number.text}, but {own.text} / {whole.text} is {low:.3f} to {high:.3f}"
            yield Finding(at=number, rule="ratio", detail=detail)


def _with_classes(numbers: list[Printed], metric: str) -> Iterator[tuple[Printed, list[Printed]]]:
    """The numbers of a metric over all classes, with those of the classes where all are printed."""
    single = {(n.table, n.row, n.testsets, n.metric): n for n in numbers}
    family = metric.partition("@")[0]
    for number in numbers:
        keys = [(number.table, number.row, number.testsets, f"{family}@{name}") for name in CLASSES]
        if number.metric == metric and all(key in single for key in keys):
            yield number, [single[key] for key in keys]


def macro(numbers: list[Printed]) -> Iterator[Finding]:
    """A printed macro average over the classes is their mean."""
    for number, parts in [*_with_classes(numbers, "class_acc@macro"), *_with_classes(numbers, "class_f1@macro")]:
        low, high = mean(part.low for part in parts), mean(part.high for part in parts)
        if number.low > high + SLACK or number.high < low - SLACK:
            texts = ", ".join(part.text for part in parts)
            yield Finding(at=number, rule="average", detail=f"{number.text} is not the mean of {texts}")


def total(numbers: list[Printed]) -> Iterator[Finding]:
    """Total accuracy is the mean of the classes' recall, each weighing by its images: they are within `SHARES` of one
    size."""
    for number, parts in _with_classes(numbers, "class_acc@total"):
        most, least = (
            max(sum(w * r for w, r in zip(weights, side, strict=True)) / sum(weights) * sign for weights in WEIGHTS)
            for sign, side in ((1, [p.high for p in parts]), (-1, [p.low for p in parts]))
        )
        if number.low > most + SLACK or number.high < -least - SLACK:
            texts = ", ".join(part.text for part in parts)
            detail = f"{number.text} is no mean of {texts} for classes within {100 * SHARES:g} % of one size"
            yield Finding(
                at=number,
                rule="total",
                detail=f"{detail}: {shown(mean((part.low + part.high) / 2 for part in parts), number)} if equal",
            )


WEIGHTS = tuple(product((1 - SHARES, 1 + SHARES), repeat=len(CLASSES)))
"""The extremes of a weighted mean lie where each class has its smallest or its largest size."""


RECALLS = {"image_f1": "image_acc", **{f"class_f1@{name}": f"class_acc@{name}" for name in CLASSES}}
"""Each F1 and the share that bounds it: of a class its recall, of fake against real the accuracy."""


def f1_and_recall(numbers: list[Printed]) -> Iterator[Finding]:
    """F1 is at most 2 r / (1 + r), r being the recall of the class: its value at precision 1.

    The same holds of the accuracy a over all images: with e errors among n images, TP <= n - e, and F1 = 2 TP /
    (2 TP + e) is at most 2 a / (1 + a).
    """
    single: dict[tuple[object, ...], Printed] = {
        (n.table, n.row, n.testsets, n.metric): n for n in numbers if len(n.testsets) == 1
    }
    for number in numbers:
        other = single.get((number.table, number.row, number.testsets, RECALLS.get(number.metric, "")))
        if other is not None and number.low > _alone(other.high) + SLACK:
            what, most = ("accuracy" if number.metric == "image_f1" else "recall"), shown(_alone(other.high), number)
            detail = f"F1 {number.text} with {what} {other.text}: at most {most}"
            yield Finding(at=number, rule=f"f1_above_{what}", detail=detail)


def gains(numbers: list[Printed]) -> Iterator[Finding]:
    """The difference that stands beside a number is that to the row it is a gain over."""
    by_place = {(n.table, n.row, n.column): n for n in numbers}
    for number in numbers:
        gain, other = notation.gain(number.text), by_place.get((number.table, number.gain_over, number.column))
        if gain is None or other is None:
            continue
        scale = 100 if number.percent else 1
        stated, half = float(gain) / scale, notation.rounding(gain.lstrip("+")) / scale
        low, high = number.low - other.high, number.high - other.low
        if stated - half > high + SLACK or stated + half < low - SLACK:
            detail = f"{number.text} stands beside {other.text} ({other.row}): the difference is "
            yield Finding(at=number, rule="gain", detail=detail + shown((low + high) / 2, number))


LEAST_SHARED = 4
"""Equal numbers from which two rows are said to be one: by chance, three digits agree once in hundreds."""


def same_rows(numbers: list[Printed]) -> Iterator[Finding]:
    """Rows of different methods in different tables have different numbers: two that agree wherever both have one,
    rounding allowed, are one row under two names."""
    rows: dict[tuple[str, str, str], dict[tuple[object, ...], Printed]] = {}
    for n in numbers:
        if n.metric not in specs.COUNTS:
            rows.setdefault((n.table, n.row, n.subject), {})[n.metric, n.testsets] = n
    for (one, left), (other, right) in combinations(rows.items(), 2):
        if one[0] == other[0] or one[2] == other[2]:
            continue
        shared = [(left[key], right[key]) for key in left if key in right]
        agree = all(min(a.high, b.high) - max(a.low, b.low) >= -SLACK for a, b in shared)
        if len(shared) >= LEAST_SHARED and agree:
            texts = ", ".join(f"{b.text} / {a.text}" for a, b in shared)
            detail = f"the numbers of {one[0]} {one[1]}, wherever both are printed ({texts})"
            yield Finding(at=shared[0][1], rule="same_row", detail=detail)


def confusion(numbers: list[Printed]) -> Iterator[Finding]:
    """Recall and F1 of all classes come from one confusion matrix.

    2 TP / F1 = 2 TP + FP + FN, and every image that one class misses is a false alarm of another. Summed over the
    classes c with n_c images: sum n_c (recall_c / F1_c - 1) = 0. A finding holds for all n_c within `SHARES` of one
    size.
    """
    single = {(n.table, n.row, n.testsets, n.metric): n for n in numbers}
    for table, row, testsets in dict.fromkeys(key[:3] for key in single):
        recalls, f1s = (
            [single.get((table, row, testsets, f"{family}@{name}")) for name in CLASSES]
            for family in ("class_acc", "class_f1")
        )
        pairs = [(r, f) for r, f in zip(recalls, f1s, strict=True) if r is not None and f is not None and f.low > 0]
        if len(pairs) < len(CLASSES):
            continue
        most = sum(_weighed(r.high / f.low - 1) for r, f in pairs)
        least = -sum(_weighed(1 - r.low / f.high) for r, f in pairs)
        if most >= -SLACK and least <= SLACK:
            continue
        side = f"at most {mean(r.high / f.low for r, f in pairs):.3f}"
        if least > SLACK:
            side = f"at least {mean(r.low / f.high for r, f in pairs):.3f}"
        texts = ", ".join(f"{r.text} / {f.text}" for r, f in pairs)
        detail = f"recall / F1 of the classes ({texts}) averages {side}; one confusion matrix gives 1"
        if all(_alone(r.low) <= f.high + SLACK and _alone(r.high) >= f.low - SLACK for r, f in pairs):
            detail += ". Every F1 is 2 recall / (1 + recall): precision 1, as on images of that class alone"
        _, worst = max(pairs, key=lambda pair: abs(1 - pair[0].high / pair[1].low))
        yield Finding(at=worst, rule="confusion", detail=detail)


def _weighed(value: float) -> float:
    """The most that a class of any allowed size adds to a sum over the classes."""
    return value * (1 + SHARES if value > 0 else 1 - SHARES)


def _alone(recall: float) -> float:
    """F1 at precision 1."""
    return 2 * recall / (1 + recall)


RULES: tuple[Callable[[list[Printed]], Iterator[Finding]], ...] = (
    ranges,
    f1_and_iou,
    averages,
    contradictions,
    ratios,
    macro,
    total,
    f1_and_recall,
    confusion,
    gains,
    same_rows,
)


def shown(value: float, like: Printed) -> str:
    """A value worked out from printed ones, in their units."""
    return f"{100 * value:.2f}" if like.percent else f"{value:.4f}"


def _also(again: Iterable[Printed]) -> str:
    """`, also in <places>`, of numbers that are printed again; empty for none."""
    places = _places(again)
    return f", also in {places}" if places else ""


def _places(numbers: Iterable[Printed]) -> str:
    return ", ".join(number.place for number in numbers)


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean."""
    listed = list(values)
    return sum(listed) / len(listed)
