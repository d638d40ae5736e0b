"""Build one figure, its data and its drawing: `python stages/figure.py sparsevit.figure_6 --profile small`."""

from __future__ import annotations

import argparse
import sys

from unforge import markdown, paths, profiles, specs, tables
from unforge.report import curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", help="<paper>.figure_N")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        stage(arguments.figure, profiles.load(arguments.profile))
    except (ValueError, OSError) as error:
        sys.exit(f"figure {arguments.figure}: {error}")


def stage(figure: str, profile: profiles.Profile) -> None:
    """Write `reports/<profile>/tables/<paper>.figure_N.parquet` and `.svg`."""
    paper, _, name = figure.partition(".")
    data = tables.build_figure(paper, name, profile)
    drawn = curves.svg(data, metric=specs.figures(paper)[name].metric, salt=figure)
    target = paths.table(profile.name, figure)
    target.parent.mkdir(parents=True, exist_ok=True)
    markdown.write_parquet(data, target.with_name(f"{figure}.parquet"))
    with paths.writing_file(target.with_name(f"{figure}.svg")) as temporary:
        temporary.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
