"""What the page is made of: tables with their cells, figures, claims, a paper's section. Arranged by `page`."""

from __future__ import annotations

from dataclasses import dataclass, field

from unforge.report import gallery


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table, ready to be shown."""

    column: str
    measured: str = ""
    interval: str = ""
    printed: str = ""
    status: str = ""
    spread: str = ""
    """`n 80 · 3 seeds, sd 0.04`."""
    baseline: str = ""
    """Constant baselines, where they differ within the column."""
    weak: bool = False
    """The interval does not lie above both constant baselines."""
    notes: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table."""

    id: str
    label: str
    origin: str
    line: int | None
    errata: str
    cells: list[Cell]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows that belong together."""

    name: str
    """Empty: rows of the paper's own."""
    rows: list[Row]


@dataclass(frozen=True, kw_only=True)
class Head:
    """Head of a column."""

    id: str
    label: str
    metric: str
    testset: str
    data: str
    baseline_all: str
    baseline_centre: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its cells, notes and state."""

    id: str
    name: str
    caption: str
    place: str
    protocol: str
    command: str
    built: bool
    heads: list[Head] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Of the table, not numbered."""
    cell_notes: list[str] = field(default_factory=list)
    """Numbered from 1."""
    counts: dict[str, int] = field(default_factory=dict)
    conditions: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure: its drawing, and its points as text."""

    id: str
    name: str
    caption: str
    place: str
    metric: str
    command: str
    notes: tuple[str, ...]
    says: str
    """What the drawing shows and what the paper prints of it."""
    svg: str
    """Empty when the figure was not built."""
    points: list[dict[str, str]]
    conditions: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim with its verdict."""

    id: str
    text: str
    quote: str
    line: int | None
    relation: str
    left: str
    right: str
    difference: str
    interval: str
    bar: tuple[float, float, float] | None
    """Low, value and high of the difference as shares of a bar from -1 (0) to 1 (100)."""
    verdict: str
    basis: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A section of the page."""

    id: str
    title: str
    citation: str
    text: str
    tables: list[Table]
    figures: list[Figure]
    claims: list[Claim]
    claims_built: bool
    audit: list[dict[str, str]]
    audit_built: bool
    walls: list[gallery.Wall]
