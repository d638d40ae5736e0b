"""One table of a paper from scores and counts: `python stages/table.py sparsevit.table_2`. Needs no model."""

from __future__ import annotations

import argparse
import sys

from unforge import markdown, paths, profiles, tables

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        profile = profiles.load(arguments.profile)
        paper, _, name = arguments.table.partition(".")
        markdown.write(tables.build(paper, name, profile), paths.table(profile.name, arguments.table))
    except (ValueError, OSError) as error:
        sys.exit(f"table {arguments.table}: {error}")
