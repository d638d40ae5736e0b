"""Build one figure, its data and its drawing: `python stages/figure.py sparsevit.figure_6 --profile small`."""

from __future__ import annotations

import argparse
import sys

from unforge import figures, markdown, paths, profiles, specs
from unforge.report import charts


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
    data = figures.build(paper, name, profile)
    spec = specs.figures(paper)[name]
    drawn = charts.svg(data, kind=spec.kind, metric=spec.metric, salt=figure)
    target = paths.table(profile.name, figure)
    target.parent.mkdir(parents=True, exist_ok=True)
    markdown.write_parquet(data, target.with_name(f"{figure}.parquet"))
    with paths.writing_file(target.with_name(f"{figure}.svg")) as temporary:
        temporary.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
