"""The status block of README.md: how many cells of each table were measured, and how the claims came out.

It shows the profile whose tables are in git, whatever profile is active, and needs only what is in git.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq

from unforge import cells, claims, paths, profiles, tables

FILE = Path("README.md")
PROFILE = "small"
"""The profile whose tables, claims and audit git keeps."""
BEGIN, END = "<!-- status -->", "<!-- /status -->"
_BLOCK = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


def block(profile: profiles.Profile) -> str:
    """Markdown: one line per table with its number of cells by status, and one per paper with its claims' verdicts."""
    names = ("paper", "table", "cells", *tables.STATUSES)
    lines = [_line(names), _line(["---"] * 2 + ["---:"] * (len(names) - 2))]
    lines += [_line(str(row[name]) for name in names) for row in cells.status_summary(profile)]
    path = paths.root() / "reports" / profile.name / "claims.parquet"
    if path.is_file():
        lines += ["", *_verdicts(path)]
    return "\n".join(lines) + "\n"


def update(text: str, new: str) -> str:
    """`text` with `new` between its markers. ValueError unless both markers are there, once and in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or not _BLOCK.search(text):
        raise ValueError(f"{FILE} needs the line {BEGIN} once and {END} once after it")
    return _BLOCK.sub(lambda _: f"{BEGIN}\n\n{new.strip()}\n\n{END}", text)


def stale() -> bool:
    """Whether `write` would change README.md."""
    text = (paths.root() / FILE).read_text(encoding="utf-8")
    return update(text, block(profiles.load(PROFILE))) != text


def write() -> bool:
    """Bring README.md up to date; whether it changed."""
    if not stale():
        return False
    path = paths.root() / FILE
    text = update(path.read_text(encoding="utf-8"), block(profiles.load(PROFILE)))
    with paths.writing_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return True


def _verdicts(path: Path) -> list[str]:
    """`Claims of sparsevit: holds 3, fails 1, undecided 25; 29 in all.` for every paper in a claims file."""
    found: dict[str, Counter[str]] = {}
    for row in pq.read_table(path, columns=["paper", "verdict"]).to_pylist():
        found.setdefault(row["paper"], Counter())[row["verdict"]] += 1
    return [
        f"Claims of {paper}: {', '.join(f'{verdict} {count[verdict]}' for verdict in claims.MARKS)}; "
        f"{count.total()} in all."
        for paper, count in sorted(found.items())
    ]


def _line(parts: Iterable[str]) -> str:
    return "| " + " | ".join(parts) + " |"
