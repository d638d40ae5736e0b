"""Every value a paper does not give, as the source marks it: lines with `ASSUMPTION(paper):`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_MARK = re.compile(r"ASSUMPTION\(paper\):\s*(?P<text>.*)")
_CLOSING = re.compile(r'("""|\'\'\')\s*$')


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """A value that a paper does not give, as its `ASSUMPTION(paper):` comment says."""

    file: str
    """Relative to the package: `methods/sparsevit.py`."""
    line: int
    """1-based."""
    text: str


def find(package: Path) -> list[Assumption]:
    """Marked lines of the source of `package`, by file and line; the report itself only talks of the mark.

    The text runs on over following lines of the same comment or docstring, up to a blank line, the next
    mark or the end of the comment.
    """
    found = []
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        if file.startswith("report/"):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            mark = _MARK.search(line)
            if mark:
                text = _whole(mark["text"], line[: mark.start()], lines[number + 1 :])
                found.append(Assumption(file=file, line=number + 1, text=text))
    return found


def _whole(first: str, before: str, following: list[str]) -> str:
    parts, comment = [first], "#" in before
    for line in following:
        text = line.strip()
        goes_on = bool(text) and not _CLOSING.search(parts[-1]) and not _MARK.search(line)
        if not goes_on or (comment and not text.startswith("#")):
            break
        if comment and before.strip() != "#":
            break
        parts.append(text.lstrip("# ") if comment else text)
    return _CLOSING.sub("", " ".join(parts)).strip()
