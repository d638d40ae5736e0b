"""What the papers' own tables violate: bounds, averages, contradictions. Printed numbers only, nothing is measured.

Every rule allows for rounding: a finding holds whatever the digits behind the printed ones were.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pyarrow as pa

from unforge import markdown, notation, paths, specs
from unforge.metrics.class_acc import CLASSES

FINDINGS = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("paper", "table", "row", "column", "rule", "detail")]
)

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

    @property
    def place(self) -> str:
        return f"{self.table} {self.row}.{self.column}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One rule broken by one printed number."""

    at: Printed
    rule: str
    detail: str


def audit() -> pa.Table:
    """Findings of every rule on every paper: paper, table, row, column, rule, detail."""
    rows = []
    for paper in specs.papers():
        numbers = printed(paper)
        for rule in RULES:
            for found in rule(numbers):
                rows.append(_row(paper, found))
        rows += [_row(paper, found) for found in claims(paper, numbers)]
    rows.sort(key=lambda row: (row["paper"], len(row["table"]), *row.values()))
    meta = json.dumps(paths.meta({"name": "audit"}, 0, {}), sort_keys=True)
    return pa.Table.from_pylist(rows, schema=FINDINGS.with_metadata({"unforge": meta}))


def printed(paper: str) -> list[Printed]:
    """Every printed number of a paper; dashes are left out."""
    found = []
    for name, table in specs.tables(paper).items():
        for row in table.rows:
            for (column, spec), text in zip(table.columns.items(), row.printed, strict=False):
                value = notation.target(text, spec.metric)
                if text is None or value is None:
                    continue
                half = notation.rounding(text) / (100 if notation.in_percent(spec.metric) else 1)
                found.append(
                    Printed(
                        table=name,
                        row=row.id,
                        column=column,
                        subject=_subject(table, row, column),
                        metric=spec.metric,
                        testsets=tuple(sorted(table.testsets(column))),
                        part=spec.part,
                        relative_to=spec.relative_to,
                        text=text,
                        low=value - half,
                        high=value + half,
                    )
                )
    return found


def _subject(table: specs.Table, row: specs.Row, column: str) -> str:
    """A re-run row by method, variant and protocol; a cited one by its label's letters and digits."""
    if row.origin:
        return f"{row.origin}/{row.variant}/{table.signal(row, column)}"
    if row.method is not None:
        return f"{row.method}/{row.variant or 'full'}"
    return "".join(letter for letter in row.label.lower() if letter.isalnum())


def ranges(numbers: list[Printed]) -> Iterator[Finding]:
    """A metric lies in [0,1], a count is positive."""
    for number in numbers:
        if number.metric in specs.COUNTS:
            if number.high <= 0:
                yield Finding(at=number, rule="range", detail=f"{number.text} is not positive")
        elif number.low > 1 + SLACK or number.high < -SLACK:
            yield Finding(at=number, rule="range", detail=f"{number.text} is outside [0,1]")


def f1_and_iou(numbers: list[Printed]) -> Iterator[Finding]:
    """IoU <= F1 <= 2 IoU / (1 + IoU) on the same images: equal per image, and the mean keeps the order (Jensen).

    A pair that is printed again in another table is one finding.
    """
    iou: dict[tuple[object, ...], list[Printed]] = {}
    for n in numbers:
        if n.metric == "pixel_iou":
            iou.setdefault((n.subject, n.testsets), []).append(n)
    pairs: dict[tuple[object, ...], list[tuple[Printed, Printed]]] = {}
    for n in numbers:
        others = iou.get((n.subject, n.testsets), [])
        if n.metric == "pixel_f1@0.5" and others:
            other = next((o for o in others if o.table == n.table), others[0])
            pairs.setdefault((n.subject, n.testsets, n.text, other.text), []).append((n, other))
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
    places = sorted({n.table for n in numbers})
    for number in numbers:
        if len(number.testsets) < 2:
            continue
        for place in [number.table] + [name for name in places if name != number.table]:
            keys = [(number.subject, number.metric, testset, place) for testset in number.testsets]
            if all(key in single for key in keys):
                parts = [single[key] for key in keys]
                low, high = _mean(part.low for part in parts), _mean(part.high for part in parts)
                if number.low > high + SLACK or number.high < low - SLACK:
                    texts = ", ".join(part.text for part in parts)
                    detail = f"{number.text} is not the mean of {texts} ({place}): {(low + high) / 2:.4f}"
                    yield Finding(at=number, rule="average", detail=detail)
                break


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


def macro(numbers: list[Printed]) -> Iterator[Finding]:
    """A printed macro average over the classes is their mean."""
    single = {(n.table, n.row, n.testsets, n.metric): n for n in numbers}
    for number in numbers:
        family, _, of = number.metric.partition("@")
        keys = [(number.table, number.row, number.testsets, f"{family}@{name}") for name in CLASSES]
        if of != "macro" or not all(key in single for key in keys):
            continue
        parts = [single[key] for key in keys]
        low, high = _mean(part.low for part in parts), _mean(part.high for part in parts)
        if number.low > high + SLACK or number.high < low - SLACK:
            texts = ", ".join(part.text for part in parts)
            yield Finding(at=number, rule="average", detail=f"{number.text} is not the mean of {texts}")


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
        side = f"at most {_mean(r.high / f.low for r, f in pairs):.3f}"
        if least > SLACK:
            side = f"at least {_mean(r.low / f.high for r, f in pairs):.3f}"
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
    confusion,
)


def claims(paper: str, numbers: list[Printed]) -> Iterator[Finding]:
    """A comparative statement of the paper agrees with the numbers it prints: in order, and by what it says."""
    by_place = {(n.table, n.row, n.column): n for n in numbers}
    for claim_id, claim in specs.claims(paper).items():
        sides = [
            [by_place.get((side.table, side.row, column)) for column in side.columns]
            for side in (claim.left, claim.right)
        ]
        left, right = ([n for n in side if n is not None] for side in sides)
        if claim.line is None or len(left) < len(sides[0]) or len(right) < len(sides[1]):
            continue
        if claim.relation == "greater":
            most = _mean(n.high for n in left) - _mean(n.low for n in right)
        else:
            most = _mean(n.high for n in right) - _mean(n.low for n in left)
        if most <= SLACK:
            values = " and ".join(f"{_mean((n.low + n.high) / 2 for n in side):.4f}" for side in (left, right))
            detail = f"line {claim.line}, {claim_id}: {claim.text}; printed: {values}"
            yield Finding(at=left[0], rule="claim", detail=detail)
        if claim.gain:
            yield from _gain(claim_id, claim, left, right)


def _gain(claim_id: str, claim: specs.Claim, left: list[Printed], right: list[Printed]) -> Iterator[Finding]:
    """The difference that a claim states is that of the printed numbers."""
    stated = notation.target(claim.gain, left[0].metric)
    half = notation.rounding(claim.gain) / (100 if notation.in_percent(left[0].metric) else 1)
    low, high = (
        _mean(n.low for n in left) - _mean(n.high for n in right),
        _mean(n.high for n in left) - _mean(n.low for n in right),
    )
    if stated is not None and (stated - half > high + SLACK or stated + half < low - SLACK):
        detail = f"line {claim.line}, {claim_id}: the text says {claim.gain}; printed: {(low + high) / 2:.4f}"
        yield Finding(at=left[0], rule="gain", detail=detail)


def _also(again: Iterable[Printed]) -> str:
    """`, also in <places>`, of numbers that are printed again; empty for none."""
    places = _places(again)
    return f", also in {places}" if places else ""


def _places(numbers: Iterable[Printed]) -> str:
    return ", ".join(number.place for number in numbers)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _row(paper: str, found: Finding) -> dict[str, str]:
    at = found.at
    return {
        "paper": paper,
        "table": at.table,
        "row": at.row,
        "column": at.column,
        "rule": found.rule,
        "detail": found.detail,
    }


def write(table: pa.Table, base_path: Path) -> None:
    """Findings as `<base_path>.parquet` and, for people, `<base_path>.md`."""
    markdown.write_parquet(table, base_path.with_name(base_path.name + ".parquet"))
    with paths.writing_file(base_path.with_name(base_path.name + ".md")) as partial:
        partial.write_text(text(table), encoding="utf-8")


def text(table: pa.Table) -> str:
    """Findings by paper; a paper without any says so."""
    rows = table.to_pylist()
    lines = ["# Audit of the printed tables", ""]
    for paper in specs.papers():
        lines += [f"## {specs.paper(paper).title.strip()}", ""]
        own = [row for row in rows if row["paper"] == paper]
        if own:
            lines += ["| table | row | column | rule | detail |", "| --- " * 5 + "|"]
            lines += [
                "| " + " | ".join(markdown.escape(row[name]) for name in FINDINGS.names[1:]) + " |" for row in own
            ]
        else:
            lines.append(f"Nothing found in {len(printed(paper))} printed numbers.")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
