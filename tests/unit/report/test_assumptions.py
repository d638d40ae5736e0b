"""Lines marked ASSUMPTION(paper) are found with file, line and whole text."""

from __future__ import annotations

from pathlib import Path

from unforge.report import assumptions

SOURCE = '''"""Module. ASSUMPTION(paper): one line of a docstring."""

# ASSUMPTION(paper): the width
# is 32 here.
WIDTH = 32
x = 1  # ASSUMPTION(paper): trailing comment
# another comment

y: int
"""What y is.

ASSUMPTION(paper): runs over
two lines.

Not part of it."""
'''


def test_marks_are_found_but_not_in_the_report_itself(tmp_path: Path) -> None:
    for folder in ("methods/deep", "forgeries", "report"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "module.py").write_text(SOURCE, encoding="utf-8")
    found = assumptions.find(tmp_path)
    assert {item.file for item in found} == {"methods/deep/module.py", "forgeries/module.py"}
    of_one = [(item.line, item.text) for item in found if item.file.startswith("methods")]
    assert of_one == [
        (1, "one line of a docstring."),
        (3, "the width is 32 here."),
        (6, "trailing comment"),
        (12, "runs over two lines."),
    ]
