"""What a paper's tables print, for the tests of these tables."""

from __future__ import annotations

import re

from unforge import specs


def plain(words: str) -> str:
    return re.sub(r"[^a-z0-9]", "", words.lower())


def printed(row: specs.Row) -> list[str]:
    return [value for value in row.printed if value is not None]


def numbers(paper: str) -> dict[str, int]:
    """How many numbers each table prints."""
    return {name: sum(len(printed(row)) for row in table.rows) for name, table in specs.tables(paper).items()}


def cell(paper: str, table: str, row: str, column: str) -> tuple[str | None, int | None]:
    """What is printed there, and on which line of the text."""
    spec = specs.tables(paper)[table]
    found = specs.row(spec, row)
    return dict(zip(spec.columns, found.printed, strict=True))[column], found.line
