"""The YAML of `papers/`: what a paper prints and claims, strictly parsed. An unknown key is an error.

`papers/<paper>/paper.yaml`, `table_N.yaml`, `figure_N.yaml`, `claims.yaml`. Nothing is listed twice:
runs, test sets and perturbations exist because a table, a figure or a claim names them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from unforge import notation, paths
from unforge.drawings import Figure as Figure
from unforge.drawings import Panel as Panel
from unforge.drawings import Series as Series
from unforge.drawings import Spec as Spec

T = TypeVar("T", bound=Spec)

TIME = "epoch_seconds"
"""Metric of a column of training times: printed, and measured in no table, for they are not reproducible."""

COUNTS = ("params", "macs", "params_ratio", "macs_ratio", "input_size", "flops", TIME)
"""Columns that need neither data nor weights: parameters, multiply-accumulates, the two relative to another
variant, the side of the square input (pixels) at which they are counted, and two operations for each
multiply-accumulate."""

MEAN = "mean"
"""Metric of a column that is the mean of others, whatever theirs are."""

ROLES = ("backbone", "sam", "anchor", "codebook", "expert", "explanations", "run")
"""What a run may build on."""


class Paper(Spec):
    """`paper.yaml`."""

    title: str
    method: str
    """Module of `unforge.methods` that is the paper's own."""
    text: str
    """File name of the text the source lines count in."""
    citation: str
    assets: dict[str, dict[str, str]] = Field(default_factory=dict)
    """What runs build on, by role: of all variants of a method (`tampertok`), and what is different for one
    (`tampertok-mvss`; empty: nothing). `backbone`, `sam` and `anchor` name backbones, `codebook` a codebook, `expert`
    a run of the same protocol (`sparsevit-stem`), `run` the run whose weights are taken (`full`), `explanations` is
    `yes` for texts to learn from."""

    def of(self, method: str, variant: str) -> dict[str, str]:
        """Assets of a variant by role. A run's weights hold all the others."""
        found = {**self.assets.get(method, {}), **self.assets.get(f"{method}-{variant}", {})}
        found = {role: name for role, name in found.items() if name}
        return {"run": found["run"]} if "run" in found else found

    @model_validator(mode="after")
    def _roles(self) -> Paper:
        for owner, assets in self.assets.items():
            if unknown := sorted(set(assets) - set(ROLES)):
                raise ValueError(f"assets of {owner}: unknown roles {unknown}, accepted are {', '.join(ROLES)}")
        return self


class Column(Spec):
    """One column of a table: a metric and where it is measured, or a count."""

    label: str
    metric: str
    """Module-level name of `unforge.metrics` (`pixel_f1@0.5`), or one of `COUNTS`."""
    testset: str | None = None
    """`casia1`, or perturbed: `casia1~jpeg70`. None for counts and averages."""
    protocol: str | None = None
    """Training protocol of this column's runs, where it is not the table's."""
    average: tuple[str, ...] = ()
    """Column ids this one is the mean of."""
    testsets: tuple[str, ...] = ()
    """Test sets this one is the mean over, where the table has no columns of their own for them."""
    tolerance: float | None = None
    """Largest |measured - printed| that is a `match`, in the units of `number` (not millions)."""
    part: str = ""
    """Counts: which part of the network is counted (`""` whole, `head`)."""
    relative_to: str | None = None
    """Ratios: the variant whose count is 1; of a row with an `origin`, after that and `_`."""
    signal: str = ""
    """Provenance: what is measured, where the row does not say."""
    positives: str | None = None
    """Provenance: what was done to the positives (`~resampled`); None: what was done to the negatives."""

    @model_validator(mode="after")
    def _one_origin(self) -> Column:
        origins = sum((self.testset is not None, bool(self.average), bool(self.testsets)))
        if self.metric in COUNTS:
            if origins:
                raise ValueError(f"the count {self.metric} has no test set and is no average")
        elif origins != 1 or (self.metric == MEAN and not self.average):
            raise ValueError(f"a column of {self.metric} needs exactly one of testset, testsets, average")
        if self.metric.endswith("_ratio") != (self.relative_to is not None):
            raise ValueError(f"relative_to goes with a ratio and only with one, not with {self.metric}")
        return self

    @property
    def is_count(self) -> bool:
        return self.metric in COUNTS


class Row(Spec):
    """One row of a table, as printed and as measured."""

    id: str
    label: str
    """As printed."""
    line: int | None = None
    """Line of the paper's text that prints this row; None for a row we add."""
    method: str | None = None
    """None: cited, the method is not re-run."""
    variant: str = ""
    block: str = ""
    """Name of the block of rows, when it is not the paper's own."""
    of: str = ""
    """Paper whose run this row shows, where that is another: the same method, trained by the same protocol."""
    only: tuple[str, ...] = ()
    """Columns that are measured in this row; empty: all."""
    gain_over: str = ""
    """Id of the row over which the gains are that stand beside the printed numbers."""
    origin: str = ""
    """Provenance: the model whose images are the positives; the column's test set holds the negatives, and the
    variant is the encoder."""
    signal: str = ""
    """Provenance: a module-level name of `unforge.provenance.signals.SIGNALS`; empty: the column's."""
    signals: dict[str, str] = Field(default_factory=dict)
    """The same for single columns."""
    printed: tuple[str | None, ...] = ()
    """The paper's strings in the order of the columns; empty for a row we add."""
    errata: str = ""
    """What is known to be wrong with the printed row, or why a count differs."""


class Table(Spec):
    """`table_N.yaml`."""

    caption: str
    place: str
    """Where the paper prints it."""
    protocol: str | None
    """Training protocol of the measured rows (module of `unforge.datasets` with MEMBERS); None when
    nothing is trained."""
    percent: bool = False
    """Metrics are printed in percent."""
    columns: dict[str, Column]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _shape(self) -> Table:
        ids = [row.id for row in self.rows]
        if len(set(ids)) != len(ids):
            raise ValueError(f"row ids repeat: {ids}")
        for row in self.rows:
            if row.printed and len(row.printed) != len(self.columns):
                raise ValueError(f"row {row.id}: {len(row.printed)} printed values for {len(self.columns)} columns")
            if row.method is None and not row.printed:
                raise ValueError(f"row {row.id} is neither measured nor printed")
            if bool(row.printed) != (row.line is not None):
                raise ValueError(f"row {row.id}: printed values and the line that prints them go together")
            for value in row.printed:
                if value is not None:
                    notation.number(value)
        for index, (name, column) in enumerate(self.columns.items()):
            compared = any(row.method and row.printed and row.printed[index] for row in self.rows)
            if compared and column.tolerance is None and column.metric != TIME:
                raise ValueError(f"column {name} has measured rows beside printed ones and needs a tolerance")
            for part in column.average:
                if part not in self.columns:
                    raise ValueError(f"column {name} averages an unknown column{near(part, self.columns)}")
                of_other = self.columns[part].metric != column.metric or self.columns[part].testset is None
                if of_other if column.metric != MEAN else self.columns[part].average or self.columns[part].is_count:
                    raise ValueError(f"column {name} averages {part}, which is not its metric on one test set")
        metrics = [name for name, column in self.columns.items() if not column.is_count]
        plain = [row for row in self.rows if row.method is not None and not row.origin]
        if self.protocol is None and metrics and plain:
            raise ValueError("a table with measured metrics needs a protocol, or the rows an origin")
        for row in self.rows:
            if unknown := {*row.only} - {*self.columns} or {*filter(None, [row.gain_over])} - {*ids}:
                raise ValueError(f"row {row.id} names what is not there: {', '.join(sorted(unknown))}")
            for name in metrics:
                if bool(self.signal(row, name)) != bool(row.origin):
                    raise ValueError(f"row {row.id}, column {name}: a signal goes with an origin and only with one")
        return self

    def signal(self, row: Row, column: str) -> str:
        """Provenance: the signal a cell shows; empty otherwise."""
        return row.signals.get(column) or row.signal or (self.columns[column].signal if row.origin else "")

    def positives(self, row: Row, column: str) -> str:
        """Provenance: the test set that holds a cell's positives."""
        spec = self.columns[column]
        return paths.generated(row.origin) + (suffix(spec.testset) if spec.positives is None else spec.positives)

    def own(self, row: Row, column: str) -> bool:
        """Provenance: whether the negatives of a cell would be the model's own images: there is nothing to tell."""
        negatives = [testset.partition("~")[0] for testset in self.testsets(column)]
        return bool(row.origin) and paths.generated(row.origin) in negatives

    def testsets(self, column: str) -> tuple[str, ...]:
        """Test sets a column is the mean over: one for a plain column, none for a count."""
        return tuple(self.trained(column))

    def trained(self, column: str) -> dict[str, str]:
        """Test sets a column is the mean over, and the protocol by which the runs are trained that are scored there."""
        spec = self.columns[column]
        found = {test: protocol for part in spec.average for test, protocol in self.trained(part).items()}
        names = spec.testsets if spec.testset is None else (spec.testset,)
        return found | dict.fromkeys(names, spec.protocol or self.protocol or "")

    def protocols(self) -> tuple[str, ...]:
        """Training protocols of the measured rows, sorted."""
        return tuple(sorted({p for column in self.columns for p in self.trained(column).values() if p}))

    def measured(self, row: Row) -> tuple[str, ...]:
        """Columns that are measured in a row."""
        return () if row.method is None else tuple(name for name in self.columns if not row.only or name in row.only)

    def in_percent(self, column: str) -> bool:
        """Whether a column is printed in percent."""
        spec = self.columns[column]
        return notation.in_percent(spec.metric) or (self.percent and not spec.is_count)


class Side(Spec):
    """One side of a claim: a row of a table, over one or more of its columns (their mean)."""

    table: str
    row: str
    columns: tuple[str, ...]


class Claim(Spec):
    """A comparative statement of the paper: `left` is better than `right`."""

    text: str
    line: int | None
    """Line of the paper's text; None for a comparison we add."""
    left: Side
    right: Side
    relation: Literal["greater", "less"] = "greater"
    seeds: int = Field(default=1, ge=1)
    """Seeds of both sides: 3 where the comparison is decidable at the `small` scale."""
    quote: str = ""
    """The paper's words on that line."""
    gain: str = ""
    """The difference of the sides as the paper states it (`0.13`), left minus right; empty: it states none."""
    note: str = ""

    @model_validator(mode="after")
    def _sourced(self) -> Claim:
        if (self.line is None) != (not self.quote):
            raise ValueError("a claim of the paper has a line and its quote, one that we add has neither")
        return self


class Claims(Spec):
    """`claims.yaml`."""

    seed_sd: dict[Literal["small", "paper"], float]
    """Standard deviation of a cell between seeds, by scale, where it is known: what a comparison with one
    seed must exceed twice. A scale that is missing leaves such comparisons undecided."""
    seed_sd_source: str
    claims: dict[str, Claim]


@lru_cache(maxsize=512)
def _parse(text: str, kind: type[T]) -> T:
    return kind.model_validate(yaml.safe_load(text))


def _read(path: Path, kind: type[T]) -> T:
    try:
        found: T = _parse(path.read_text(encoding="utf-8"), kind)
    except (ValidationError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None
    return found


def papers() -> list[str]:
    """Names of the papers, sorted."""
    return sorted(p.parent.name for p in (paths.root() / "papers").glob("*/paper.yaml"))


def paper(name: str) -> Paper:
    return _read(paths.root() / "papers" / name / "paper.yaml", Paper)


def tables(name: str) -> dict[str, Table]:
    """`{"table_2": ...}` of one paper, sorted by number."""
    return {p.stem: _read(p, Table) for p in _numbered(name, "table")}


def row(table: Table, row_id: str) -> Row:
    """The row of that id; ValueError names the near ones."""
    for found in table.rows:
        if found.id == row_id:
            return found
    raise ValueError(f"there is no row{near(row_id, [found.id for found in table.rows])}")


def figures(name: str) -> dict[str, Figure]:
    return {p.stem: _read(p, Figure) for p in _numbered(name, "figure")}


def claims(name: str) -> dict[str, Claim]:
    """Claims of one paper, each side checked against the tables: ValueError names what is unknown."""
    path = _claims_path(name)
    if not path.is_file():
        return {}
    found = dict(_read(path, Claims).claims)
    known = tables(name)
    for claim_id, claim in found.items():
        try:
            _check_sides(claim, known)
        except ValueError as error:
            raise ValueError(f"{path}: {claim_id}: {error}") from None
    return found


def seed_sd(name: str) -> dict[str, float]:
    """Known standard deviation between seeds by scale; empty for a paper without claims."""
    path = _claims_path(name)
    return {str(scale): value for scale, value in _read(path, Claims).seed_sd.items()} if path.is_file() else {}


def near(name: str, known: Iterable[str]) -> str:
    """` 'nmae' (near: name)`, for error messages."""
    matches = difflib.get_close_matches(name, list(known), n=3)
    return f" {name!r}" + (f" (near: {', '.join(matches)})" if matches else "")


def _check_sides(claim: Claim, known: dict[str, Table]) -> None:
    measured = []
    for side in (claim.left, claim.right):
        if side.table not in known:
            raise ValueError(f"unknown table{near(side.table, known)}")
        table = known[side.table]
        if row(table, side.row).method is None:
            raise ValueError(f"row {side.row} of {side.table} is cited: nothing is measured to compare")
        for column in side.columns:
            if column not in table.columns:
                raise ValueError(f"{side.table} has no column{near(column, table.columns)}")
            if column not in table.measured(row(table, side.row)) or table.columns[column].metric == MEAN:
                raise ValueError(f"{side.table}: {column} of {side.row} is not measured, or no single metric")
        columns = [table.columns[column] for column in side.columns]
        if len({column.metric for column in columns}) != 1:
            raise ValueError(f"{side.table}: {side.columns} must be one or more columns of one metric")
        if columns[0].is_count and len(columns) > 1:
            raise ValueError(f"{side.table}: counts are compared one column at a time")
        testsets = [testset for column in side.columns for testset in table.testsets(column)]
        measured.append((columns[0].metric, columns[0].part, testsets))
    if measured[0] != measured[1]:
        raise ValueError(f"the sides differ in metric or test sets: {measured[0]} and {measured[1]}")


def _claims_path(name: str) -> Path:
    return paths.root() / "papers" / name / "claims.yaml"


def _numbered(name: str, kind: str) -> list[Path]:
    """Sorted by number; `figure_1b` stands with figure 1."""
    folder = paths.root() / "papers" / name
    return sorted(folder.glob(f"{kind}_*.yaml"), key=lambda p: (len(re.sub(r"(?<=\d)[a-z]$", "", p.stem)), p.stem))


def suffix(testset: str | None) -> str:
    """What was done to a test set: `~jpeg60`; empty for one that is as it is."""
    _, mark, rest = (testset or "").partition("~")
    return mark + rest


def run_name(paper_name: str, protocol: str, method: str, variant: str, seed: int) -> str:
    """`sparsevit/catnet/full/s0`: the full method's variant is written `full`. Where the method is not the paper's own,
    it comes before: `tampertok/tampertok/mvssnet-full/s0`."""
    other = "" if method == paper(paper_name).method else f"{method}-"
    return f"{paper_name}/{protocol}/{other}{variant or 'full'}/s{seed}"
