"""The `unforge` command. Exit status: 0 done, 1 something was found (stale, moved, rejected), 2 bad input.

Every command imports what it needs when it runs, so that `unforge --help` stays instant.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import click

P = ParamSpec("P")

EXAMPLES = """\b
Examples:
  unforge tables                                   state of every table
  unforge cells --format csv > cells.csv           every printed number beside the measured one
  unforge methods --counts                         parameters and MACs at paper scale
  unforge data add casia1 ~/CASIA1                 use the real set instead of the stand-in
  unforge inspect photo.jpg --run sparsevit/catnet/srm_lff/s0
  unforge trace photo.png --iar all                which generator's images it is like
  unforge diff main HEAD                           which cells moved
  unforge reproduce sparsevit.table_4 --jobs 4     what is stale of one table, side by side
  unforge share status                             what a colleague would get, and what is missing
"""


def user_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Bad input ends in one line on stderr and status 2, not in a traceback."""

    @wraps(command)
    def guarded(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            command(*arguments, **options)
        except BrokenPipeError:  # `unforge cells | head`
            raise
        except (ValueError, OSError) as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)

    return guarded


def echo_rows(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Rows as an aligned text table."""
    names = list(columns)
    text = [[_text(row.get(name)) for name in names] for row in rows]
    widths = [max([len(name), *(len(line[i]) for line in text)]) for i, name in enumerate(names)]
    for line in [names, ["-" * w for w in widths], *text]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check_paper(name: str | None) -> None:
    from unforge import specs

    if name is not None and name not in specs.papers():
        raise ValueError(f"no paper {name!r}: there are {', '.join(specs.papers())}")


def echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, sort_keys=True, default=str))


@click.group(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="unforge")
def main() -> None:
    """Five image-forensics papers as one reproducible pipeline."""


@main.command()
@click.option("--paper", help="Only this paper.")
@click.option("--profile", help="Default: the active profile.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@user_errors
def tables(paper: str | None, profile: str | None, as_json: bool) -> None:
    """State of every table: how many cells match, differ, are cited or were not run."""
    from unforge import cells as library
    from unforge import profiles

    _check_paper(paper)
    rows = [r for r in library.status_summary(profiles.load(profile)) if paper in (None, r["paper"])]
    if as_json:
        echo_json(rows)
    else:
        echo_rows(rows, rows[0])


@main.command()
@click.option("--format", "kind", type=click.Choice(["csv", "parquet", "json"]), default="csv", show_default=True)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Default: standard output.")
@click.option("--profile", help="Default: the active profile.")
@user_errors
def cells(kind: str, output: Path | None, profile: str | None) -> None:
    """Every number the papers print, and every one we add, with what was measured. Needs only what is in git."""
    import io

    import pyarrow.csv
    import pyarrow.parquet

    from unforge import cells as library
    from unforge import profiles

    table = library.cells(profiles.load(profile))
    stream = io.BytesIO()
    if kind == "csv":
        pyarrow.csv.write_csv(table, stream)
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, stream)
    else:
        stream.write(json.dumps(table.to_pylist(), indent=1).encode() + b"\n")
    if output:
        output.write_bytes(stream.getvalue())
        click.echo(f"{table.num_rows} cells written to {output}", err=True)
    else:
        sys.stdout.buffer.write(stream.getvalue())


@main.command()
@click.option(
    "--counts", is_flag=True, help="Parameters and MACs at paper scale, from meta tensors, beside the printed ones."
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@user_errors
def methods(counts: bool, as_json: bool) -> None:
    """Methods and their variants."""
    from unforge import methods as library

    if counts:
        from unforge import cells as cell_library
        from unforge import counts as count_library

        rows = cell_library.printed_counts(count_library.rows())
    else:
        rows = [{"method": m, "variant": v or "full"} for m in library.names() for v in library.load_module(m).VARIANTS]
    if as_json:
        echo_json(rows)
    else:
        echo_rows(rows, rows[0])


@main.group()
def data() -> None:
    """Datasets: what is there, add the real thing, check a copy."""


@data.command("list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@user_errors
def data_list(as_json: bool) -> None:
    """Every dataset: real, stand-in or absent; counts and licence."""
    from unforge import paths
    from unforge.datasets import add

    rows = add.list_(paths.root())
    if as_json:
        echo_json(rows)
    else:
        echo_rows(rows, [name for name in rows[0] if name not in ("layout", "defects", "source")])


@contextmanager
def _progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, silent when nobody watches, as a function of (done, total)."""
    from tqdm import tqdm

    with tqdm(unit=unit, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _rows_option(command: Callable[..., None]) -> Callable[..., None]:
    path = click.Path(path_type=Path, dir_okay=False)
    return click.option("--rows", type=path, help="Write one row per file found (Parquet): status and reason.")(command)


@data.command("add")
@click.argument("dataset")
@click.argument("source")
@_rows_option
@user_errors
def data_add(dataset: str, source: str, rows: Path | None) -> None:
    """Verify SOURCE (a directory, zip, tar or s3://bucket/prefix) and use it as DATASET from now on.

    DATASET is one of `unforge data list`, or a new name for your own images and masks: `images/` and `masks/`
    paired by stem, or a CSV with the columns image,mask; or `generated/var` and the like for images and token maps
    made elsewhere with a model's official checkpoint: `images/` and `tokens/` paired by stem.
    """
    from unforge import paths, shards
    from unforge.datasets import add

    root = paths.root()
    with _progress("files") as progress:
        report = add.add(dataset, source, root, progress=progress)
    if rows:
        shards.write_rows(rows, report.rows)
    click.echo(report.text())
    if report.module == "generated":
        click.echo("Profiles without stand-ins (`paper`) use these images; the others sample their own.")
    click.echo("`make repro` (or `dvc repro`) now re-runs exactly what touches it; run `unforge catalogue` first.")


@data.command("check")
@click.argument("dataset")
@click.argument("source")
@_rows_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@user_errors
def data_check(dataset: str, source: str, rows: Path | None, as_json: bool) -> None:
    """Look at SOURCE as DATASET without copying: layout, counts, masks, defects. Status 1 when files are rejected."""
    from unforge import shards
    from unforge.datasets import add

    with _progress("files") as progress:
        report = add.check(dataset, source, progress=progress)
    if rows:
        shards.write_rows(rows, report.rows)
    if as_json:
        echo_json(report.summary())
    else:
        click.echo(report.text())
    sys.exit(1 if report.summary()["rejected"] else 0)


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--run", "run_name", required=True, help="A trained run: sparsevit/catnet/srm_lff/s0.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("inspected"), show_default=True
)
@click.option("--profile", help="Default: the active profile.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@user_errors
def inspect(images: tuple[Path, ...], run_name: str, output: Path, profile: str | None, as_json: bool) -> None:
    """Mask overlay and JSON for someone's own photographs. No verdict: a map to look at."""
    from unforge import inspect as library
    from unforge import paths, profiles

    name = profiles.load(profile).name
    run_dir = paths.root() / paths.run(name, run_name)
    if not run_dir.is_dir():
        paper, _, rest = run_name.partition("/")
        one = f"dvc repro papers/{paper}/dvc.yaml:train-{rest.replace('/', '-')}"
        raise ValueError(f"{run_dir} is not there: `make repro` trains every run, `{one}` this one")
    rows = library.inspect(list(images), run_dir, output)
    if as_json:
        echo_json(rows)
    else:
        library.echo(rows, click.echo)
    sys.exit(2 if all(row.get("error") for row in rows) else 1 if any(row.get("error") for row in rows) else 0)


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--iar", "model", required=True, help="A model (llamagen, var, ...) or all that are there.")
@click.option(
    "--fpr", type=float, default=0.01, show_default=True, help="False-positive rate the threshold is set for."
)
@click.option("--profile", help="Default: the active profile.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@user_errors
def trace(images: tuple[Path, ...], model: str, fpr: float, profile: str | None, as_json: bool) -> None:
    """Whether an image autoregressive model made these images, and with `all` which one is the likeliest.

    A verdict needs a threshold from held-out photographs; without it there are only signals. An image smaller than
    a model's is refused; a larger one is reduced to it, which weakens the signal. Status 1 when some image could not
    be measured, 2 when none could.

    \b
    Example:
      unforge trace photo.png drawing.jpg --iar all --json
    """
    from unforge import profiles
    from unforge import trace as library

    with _progress("images") as progress:
        rows = library.trace(list(images), model, profiles.load(profile), fpr, progress=progress)
    if as_json:
        echo_json(rows)
    else:
        library.echo(rows, click.echo)
    sys.exit(library.failed(rows))


@main.command()
@click.argument("old")
@click.argument("new", required=False)
@click.option("--tolerance", type=float, default=0.0, show_default=True, help="Smallest |change| that is shown.")
@click.option("--profile", default="small", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@user_errors
def diff(old: str, new: str | None, tolerance: float, profile: str, as_json: bool) -> None:
    """Cells that moved between two git revisions (NEW: default the work tree). Status 1 when any did."""
    from unforge import cells as library

    before, after = _tables_at(old, profile), _tables_at(new, profile)
    rows = library.diff(before, after, tolerance).to_pylist()
    if as_json:
        echo_json(rows)
    elif rows:
        echo_rows(rows, rows[0])
    else:
        click.echo(f"no cell moved by more than {tolerance}")
    sys.exit(1 if rows else 0)


def _tables_at(revision: str | None, profile: str) -> Any:
    """All cells of a profile's tables at a git revision, or in the work tree."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from unforge import paths
    from unforge import tables as library

    root = paths.root()
    folder = f"reports/{profile}/tables"
    if revision is None:
        found = [pq.read_table(p) for p in sorted((root / folder).glob("*.table_*.parquet"))]
    else:
        git = ["git", "-C", str(root)]
        listing = subprocess.run(
            [*git, "ls-tree", "--name-only", revision, f"{folder}/"], capture_output=True, text=True
        )
        if listing.returncode:
            raise ValueError(f"git knows no revision {revision!r}")
        names = [n for n in listing.stdout.splitlines() if ".table_" in n and n.endswith(".parquet")]
        blobs = [
            subprocess.run([*git, "show", f"{revision}:{n}"], capture_output=True, check=True).stdout for n in names
        ]
        found = [pq.read_table(io.BytesIO(blob)) for blob in blobs]
    return pa.concat_tables([t.replace_schema_metadata(None) for t in found]) if found else library.CELLS.empty_table()


@main.command()
@click.option("--paper", help="Only this paper.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@user_errors
def audit(paper: str | None, as_json: bool) -> None:
    """What the papers' own tables violate: bounds, averages, contradictions."""
    from unforge import audit as library

    _check_paper(paper)
    rows = [f for f in library.audit().to_pylist() if paper in (None, f["paper"])]
    if as_json:
        echo_json(rows)
    elif rows:
        echo_rows(rows, rows[0])
    else:
        click.echo("nothing found")


@main.command()
@click.option(
    "--check", is_flag=True, help="Write nothing; status 1 when a dvc.yaml or the README's status block is stale."
)
@user_errors
def catalogue(check: bool) -> None:
    """Write the dvc.yaml files and the README's status block from papers/, profiles/ and the code."""
    from unforge import catalogue as library
    from unforge import readme

    if check:
        stale = [*library.check(), *([readme.FILE] if readme.stale() else [])]
        for path in stale:
            click.echo(f"{path} is stale: run `unforge catalogue`", err=True)
        sys.exit(1 if stale else 0)
    for path in [*library.write(), *([readme.FILE] if readme.write() else [])]:
        click.echo(f"wrote {path}")


def _passed_on(module: str) -> None:
    """Run `python -m flows.<module>` in the project's root: arguments, signals and status are passed on."""
    from unforge import paths

    root = paths.root()
    if not (root / "flows" / f"{module}.py").is_file():
        raise ValueError(f"{root / 'flows'} has no {module}.py: change to a clone of the repository")
    command = [sys.executable, "-m", f"flows.{module}", *click.get_current_context().args]
    # a process group of its own: Ctrl-C reaches it once, through this process
    process = subprocess.Popen(command, cwd=root, process_group=0, preexec_fn=_end_with_parent)
    handlers = {
        number: signal.signal(number, lambda received, _: process.send_signal(received))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        status = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    sys.exit(status if status >= 0 else 128 - status)


def _end_with_parent() -> None:
    """Have Linux end this process when its parent is killed."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@main.command(context_settings=PASSED_ON, add_help_option=False)
@user_errors
def reproduce() -> None:
    """Run what is stale side by side under Prefect: everything, tables, or what changed since a revision."""
    _passed_on("reproduce")


@main.command(context_settings=PASSED_ON, add_help_option=False)
@user_errors
def share() -> None:
    """What colleagues get through the DVC remote: push, pull, status."""
    _passed_on("share")


if __name__ == "__main__":
    main()
