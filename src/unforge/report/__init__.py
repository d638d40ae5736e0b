"""The report of a profile: one HTML file with every table, figure and claim, readable without network."""

from __future__ import annotations

from pathlib import Path

from unforge import paths


def render(profile: str) -> str:
    """The page of `profile` as text: no scripts, nothing fetched. Equal files give equal text."""
    import jinja2

    from unforge.report import page

    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (folder / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(**page.context(profile), style=style)


def write(profile: str) -> Path:
    """Write `reports/<profile>/index.html` and return its path.

    What was not built yet is named in the page with the command that builds it. ValueError for an unknown
    profile.
    """
    text = render(profile)
    target = paths.report(profile)
    target.parent.mkdir(parents=True, exist_ok=True)
    with paths.writing_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target
