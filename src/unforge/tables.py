"""Tables from score files: what a table needs, what its cells say, and how they are written.

`demand` answers which runs, test sets, perturbations and counts the papers' tables, figures and claims ask for;
`build` turns score and count files into cells (`unforge.figures` into points). Neither needs a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unforge import demand, metrics, notation, paths, profiles, scores, specs

CELLS = pa.schema(
    [
        pa.field("paper", pa.string(), nullable=False),
        pa.field("table", pa.string(), nullable=False),
        pa.field("row", pa.string(), nullable=False),
        pa.field("row_label", pa.string(), nullable=False),
        pa.field("block", pa.string(), nullable=False),
        pa.field("column", pa.string(), nullable=False),
        pa.field("column_label", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("printed", pa.string()),
        pa.field("measured", pa.float64()),
        pa.field("ci_low", pa.float64()),
        pa.field("ci_high", pa.float64()),
        pa.field("n", pa.int64()),
        pa.field("n_seeds", pa.int64()),
        pa.field("seed_sd", pa.float64()),
        pa.field("baseline_all", pa.float64()),
        pa.field("baseline_centre", pa.float64()),
        pa.field("testset", pa.string(), nullable=False),
        pa.field("data", pa.string(), nullable=False),
        pa.field("scale", pa.string(), nullable=False),
        pa.field("pretraining", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
        pa.field("line", pa.int64()),
        pa.field("method", pa.string()),
        pa.field("variant", pa.string()),
        pa.field("protocol", pa.string()),
        pa.field("signal", pa.string()),
        pa.field("percent", pa.bool_()),
    ]
)
"""One row per cell. `measured` is in the units of the metric: [0,1], parameters, multiply-accumulates, pixels;
it is never filled from `printed`, which is in percent where `percent` says so. `testset` joins the sets of an average
with `+`, and so does `protocol`. Of a provenance cell, `protocol`
is the model whose images are the positives, `variant` the encoder, and the test set holds the negatives."""

STATUSES = ("match", "differs", "not_comparable", "cited", "not_run", "unavailable")
"""From best to worst; an average has the worst of its parts."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """What was measured for one cell, or why it was not."""

    measured: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    n_seeds: int | None = None
    seed_sd: float | None = None
    baseline_all: float | None = None
    baseline_centre: float | None = None
    data: str = ""
    scale: str = ""
    pretraining: str = ""
    status: str = "not_run"
    note: str = ""


TIMED = Value(note="times are not reproducible: a script of benchmarks/ measures their ratio")
OWN = Value(note="the model's own images: nothing to tell apart")


@dataclass(kw_only=True)
class Reader:
    """Score files and counts of one profile, each read once."""

    profile: profiles.Profile
    _scores: dict[tuple[str, str], pa.Table | None] = field(default_factory=dict)
    _counts: dict[str, dict[tuple[str, str], dict[str, Any]]] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file read, by path."""

    def rows(self, run: str, testset: str) -> pa.Table | None:
        """Score rows of a run on a test set; None when it was not evaluated."""
        key = (run, testset)
        if key not in self._scores:
            path = paths.scores(self.profile.name, run) / f"{testset}.parquet"
            self._scores[key] = scores.read(paths.root() / path) if self._note(path) else None
        return self._scores[key]

    def count(self, method: str, variant: str, part: str) -> dict[str, Any] | None:
        """Parameters, multiply-accumulates and input size of a variant; None when they were not counted."""
        if method not in self._counts:
            path = paths.counts(self.profile.name, method)
            rows = pq.read_table(paths.root() / path).to_pylist() if self._note(path) else []
            self._counts[method] = {(row["variant"], row["part"]): row for row in rows}
        return self._counts[method].get((variant, part))

    def run_rows(
        self, paper: str, protocol: str, method: str, variant: str, number: int, testsets: Iterable[str]
    ) -> dict[str, list[pa.Table]]:
        """Score rows of a variant by test set: one table per seed that was scored on all of them.

        Without such a seed, the sets that no seed was scored on have an empty list.
        """
        names = [specs.run_name(paper, protocol, method, variant, seed) for seed in range(number)]
        found = {testset: [self.rows(name, testset) for name in names] for testset in testsets}
        complete = [i for i in range(number) if all(tables[i] is not None for tables in found.values())]
        chosen = complete or range(number)
        return {t: [table for i in chosen if (table := tables[i]) is not None] for t, tables in found.items()}

    def cell_rows(
        self, paper: str, table: specs.Table, row: specs.Row, columns: Iterable[str], number: Mapping[Any, int]
    ) -> dict[str, list[pa.Table]]:
        """Score rows behind some columns of a row, by test set: one table per seed, as `run_rows`.

        Of a provenance row: positives (label 1) and negatives (label 0) together, `score` the signal's negative.
        """
        assert row.method is not None
        testsets = {testset: column for column in columns for testset in table.testsets(column)}
        if not row.origin:
            trained = {t: p for column in columns for t, p in table.trained(column).items()}
            return self._trained_rows(row.of or paper, row, trained, number)
        found = {}
        for testset, column in testsets.items():
            positives = table.positives(row, column)
            sides = self.run_rows(paper, row.origin, row.method, row.variant, 1, dict.fromkeys((positives, testset)))
            pairs = zip(sides[positives], sides[testset], strict=True) if all(sides.values()) else ()
            found[testset] = [told(*pair, table.signal(row, column)) for pair in pairs]
        return found

    def _trained_rows(
        self, paper: str, row: specs.Row, trained: Mapping[str, str], number: Mapping[Any, int]
    ) -> dict[str, list[pa.Table]]:
        """`run_rows` over the protocols of `trained` (test set to protocol)."""
        assert row.method is not None
        found: dict[str, list[pa.Table]] = {}
        for protocol in dict.fromkeys(trained.values()):
            most = number.get((protocol, row.method, row.variant), 1)
            testsets = [testset for testset, of in trained.items() if of == protocol]
            found |= self.run_rows(paper, protocol, row.method, row.variant, most, testsets)
        return {testset: found[testset] for testset in trained}

    def samples(self, run: str) -> pa.Table | None:
        """Images of a run that were kept for figures (`evaluate.SAMPLES`); None when it was not evaluated."""
        path = paths.scores(self.profile.name, run) / "samples.parquet"
        return pq.read_table(paths.root() / path) if self._note(path) else None

    def log(self, run: str) -> pa.Table | None:
        """What a run measured while it trained (`train.log.SCHEMA`); None when it was not trained."""
        path = paths.run(self.profile.name, run) / "log.parquet"
        return pq.read_table(paths.root() / path) if self._note(path) else None

    def attention(self, paper: str) -> pa.Table | None:
        """Where the runs of a paper look in a few frames (`stages/attention.py`); None when it was not built."""
        path = Path(demand.attention(self.profile.name, paper))
        return pq.read_table(paths.root() / path) if self._note(path) else None

    def _note(self, path: Path) -> bool:
        if not (paths.root() / path).is_file():
            return False
        self.inputs[str(path)] = paths.sha256(paths.root() / path)
        return True


def build(paper: str, name: str, profile: profiles.Profile) -> pa.Table:
    """Cells of one table, from the score and count files that are there."""
    table = _table(paper, name)
    reader = Reader(profile=profile)
    number = demand.seeds(paper, profile)
    cells = []
    for row in table.rows:
        values = _row_values(paper, table, row, number, reader)
        cells += [cell(paper, name, table, row, column, values[column]) for column in table.columns]
    return pa.Table.from_pylist(cells, schema=with_meta(CELLS, paper, name, profile, reader))


def _row_values(
    paper: str, table: specs.Table, row: specs.Row, number: Mapping[tuple[str, str, str], int], reader: Reader
) -> dict[str, Value]:
    """Values of one row by column, judged against what is printed."""
    printed = dict(zip(table.columns, row.printed or [None] * len(table.columns), strict=True))
    values: dict[str, Value] = {}
    for name, column in sorted(table.columns.items(), key=lambda item: bool(item[1].average)):
        if row.method is None:
            values[name] = Value(status="cited")
            continue
        if name not in table.measured(row):
            values[name] = Value(note="not measured in this row: it would take another training run")
            continue
        if column.is_count:
            value = count_value(column, row, reader)
        elif table.own(row, name):
            value = OWN
        else:
            rows = reader.cell_rows(paper, table, row, [name], number)
            groups = [(table.columns[part].metric, table.testsets(part)) for part in column.average]
            protocols = "+".join(dict.fromkeys(table.trained(name).values()))
            value = metric_value(
                column.metric, protocols, rows, reader, row.origin, groups if column.metric == specs.MEAN else ()
            )
        value = judged(value, printed[name], column.tolerance, column.metric, table.in_percent(name))
        if column.average:
            value = replace(value, status=worst([value.status, *(values[part].status for part in column.average)]))
        if row.errata and value.status == "differs":
            value = replace(value, note="; ".join(filter(None, (value.note, row.errata))))
        values[name] = value
    return values


def told(positives: pa.Table, negatives: pa.Table, signal: str) -> pa.Table:
    """Score rows of images of one model and of others: labels 1 and 0, `score` minus the signal (null where an image
    has none). ValueError when no row of one side has it."""
    parts = []
    for label, rows in ((1, positives), (0, negatives)):
        signals = [dict(row or ()).get(signal) for row in rows["signals"].to_pylist()]
        scored = [None if value is None else -value for value in signals]
        columns = {"label": [label] * rows.num_rows, "score": scored}
        for name, values in columns.items():
            place = rows.schema.get_field_index(name)
            kind = pa.float64() if name == "score" else rows.schema.field(name).type
            rows = rows.set_column(place, pa.field(name, kind), pa.array(values, type=kind))
        parts.append(rows)
    return pa.concat_tables([part.replace_schema_metadata(negatives.schema.metadata) for part in parts])


def both(sides: list[dict[str, list[pa.Table]]]) -> list[dict[str, list[pa.Table]]]:
    """The same by test set, with the images only that have a score on every side: a costly signal is taken of some."""
    kept: list[dict[str, list[pa.Table]]] = [{} for _ in sides]
    for testset in sides[0]:
        scored = [t.filter(pc.is_valid(t["score"]))["key"].to_pylist() for rows in sides for t in rows[testset]]
        shared = set.intersection(*map(set, scored)) if scored else set()
        for side, rows in zip(kept, sides, strict=True):
            side[testset] = [keep(table, shared) for table in rows[testset]]
    return kept


def count_value(column: specs.Column, row: specs.Row, reader: Reader) -> Value:
    """The count a column shows of a row; status `match` says only that it may be compared."""
    assert row.method is not None
    if column.metric == specs.TIME:
        return TIMED
    found = reader.count(row.method, row.variant, column.part)
    if found is None:
        return Value(note=f"{row.method} {row.variant or 'full'} was not counted")
    if column.metric == "flops":
        measured = 2.0 * found["macs"]
    elif column.relative_to is None:
        measured = float(found[column.metric])
    else:
        reference = f"{row.origin}_{column.relative_to}" if row.origin else column.relative_to
        whole = reader.count(row.method, reference, column.part)
        if whole is None:
            return Value(note=f"{row.method} {reference} was not counted")
        what = column.metric.removesuffix("_ratio")
        measured = found[what] / whole[what]
    return Value(measured=measured, scale="paper", status="match")


def metric_value(
    metric: str,
    protocol: str,
    rows: Mapping[str, list[pa.Table]],
    reader: Reader,
    origin: str = "",
    groups: Sequence[tuple[str, Sequence[str]]] = (),
) -> Value:
    """Mean of a metric over the test sets of `rows` (score rows by test set, one table per seed).

    `groups`: the metric and the test sets of each column that this one is the mean of; then `metric` is none.
    Status `match` says only that it may be compared: `_judged` does that.
    """
    profile = reader.profile
    parts = []
    for testset, per_seed in rows.items():
        if not per_seed or not per_seed[0].num_rows:
            parts.append(missing(profile, protocol, testset, origin))
            continue
        about = [scores.metadata(table) for table in per_seed]
        data = sorted({value for table in per_seed for value in table["data"].unique().to_pylist()})
        scale = sorted({str(entry["scale"]) for entry in about})
        comparable = data == ["real"] and scale == ["paper"] and not profile.stand_ins
        parts.append(
            Value(
                data=data[0] if len(data) == 1 else "mixed",
                scale="+".join(scale),
                pretraining="+".join(sorted({str(entry["pretraining"]) for entry in about if entry["pretraining"]})),
                status="match" if comparable else "not_comparable",
            )
        )
    status = worst(part.status for part in parts)
    if status in ("not_run", "unavailable"):
        return Value(status=status, note="; ".join(dict.fromkeys(part.note for part in parts if part.note)))
    by_column = groups or [(metric, list(rows))]
    if any(len({len(rows[testset]) for testset in testsets}) > 1 for _, testsets in by_column):
        return Value(note="no seed was scored on every test set")
    columns = [[(rows[testset], of) for testset in testsets] for of, testsets in by_column]
    estimate = metrics.of_columns(columns, profile.seed)
    if estimate.value is None:
        return Value(note=f"no image counts for {metric}")
    known = {part.data for part in parts}
    baselines = {
        name: None if groups else _baseline(metric, variant, rows, reader) for name, variant in demand.BASELINES.items()
    }
    return Value(
        measured=estimate.value,
        ci_low=estimate.ci_low,
        ci_high=estimate.ci_high,
        n=estimate.n,
        n_seeds=estimate.n_seeds,
        seed_sd=estimate.seed_sd,
        baseline_all=baselines["baseline_all"],
        baseline_centre=baselines["baseline_centre"],
        data=known.pop() if len(known) == 1 else "mixed",
        scale="+".join(sorted({part.scale for part in parts})),
        pretraining="+".join(sorted({part.pretraining for part in parts if part.pretraining})),
        status=status,
    )


def _baseline(metric: str, variant: str, rows: Mapping[str, list[pa.Table]], reader: Reader) -> float | None:
    """The metric of a constant prediction on the same images; None when it was not scored on all of them.

    A perturbation leaves a constant prediction as it is, so the unperturbed set's rows serve.
    """
    found = []
    for testset, per_seed in rows.items():
        table = reader.rows(demand.baseline_name(variant), demand.base(testset))
        keys = set(per_seed[0]["key"].to_pylist())
        kept = None if table is None else keep(table, keys)
        if kept is None or kept.num_rows < len(keys):
            return None
        found.append(metrics.estimate([kept], metric, reader.profile.seed, replicates=1).value)
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def missing(profile: profiles.Profile, protocol: str, testset: str, origin: str = "") -> Value:
    """`unavailable` when the profile wants a real set that was not added, or released weights, else `not_run`.

    `origin`: the model whose images are the positives of a provenance cell.
    """
    wanted = [demand.base(testset), *(member.partition("/")[0] for member in _members(protocol))]
    wanted += [paths.generated(origin)] if origin else []
    absent = [name for name in dict.fromkeys(wanted) if not profile.stand_ins and not _is_real(name)]
    notes = [f"{n}: `unforge data add {n.replace(paths.generated(''), 'generated/')} PATH`" for n in absent]
    weights = profile.values.get("codebook", {}).get(origin, {})
    if origin and not profile.stand_ins and not weights.get("file"):
        notes.append(f"weights of {origin}: codebook.{origin} in profiles/{profile.name}.yaml")
    if notes:
        return Value(status="unavailable", note="; ".join(notes))
    return Value(note=f"no scores on {testset}")


def _members(protocol: str) -> Iterable[str]:
    """Of one protocol, or of several that are joined with `+`."""
    from unforge import datasets

    return [member for name in protocol.split("+") if name for member in datasets.load(name).MEMBERS]


def _is_real(dataset: str) -> bool:
    source = paths.root() / paths.raw(dataset) / "SOURCE.json"
    return source.is_file() and paths.read_json(source)["source"] == "real"


def judged(value: Value, printed: str | None, tolerance: float | None, metric: str, percent: bool = False) -> Value:
    """`value` with its status settled: a comparable one is compared with what is printed."""
    if value.status != "match":
        return value
    target = notation.target(printed, metric, percent)
    if target is None or value.measured is None:
        return replace(value, status="not_comparable", note="nothing printed to compare with")
    assert tolerance is not None, "specs.Table requires a tolerance wherever something printed is measured"
    near = abs(value.measured - target) <= tolerance + 1e-9 * max(1.0, abs(target))
    return replace(value, status="match" if near else "differs")


def worst(statuses: Iterable[str]) -> str:
    """The worst of some statuses, in the order of `STATUSES`."""
    return max(statuses, key=STATUSES.index)


def keep(table: pa.Table, keys: Iterable[str]) -> pa.Table:
    """The rows of these images."""
    return table.filter(pc.is_in(table["key"], value_set=pa.array(sorted(keys), type=pa.string())))


def cell(paper: str, name: str, table: specs.Table, row: specs.Row, column: str, value: Value) -> dict[str, Any]:
    """Row of `CELLS` for one place of a table."""
    spec = table.columns[column]
    printed = dict(zip(table.columns, row.printed, strict=True)).get(column) if row.printed else None
    return {
        "paper": paper,
        "table": name,
        "row": row.id,
        "row_label": row.label,
        "block": row.block,
        "column": column,
        "column_label": spec.label,
        "metric": spec.metric,
        "printed": printed,
        "testset": "+".join(table.testsets(column)),
        "signal": table.signal(row, column) or None,
        "line": row.line,
        "method": row.method,
        "variant": None if row.method is None else row.variant,
        "protocol": None if row.method is None or spec.is_count else row.origin or _joined(table, column),
        "percent": table.in_percent(column),
        **vars(value),
    }


def _joined(table: specs.Table, column: str) -> str | None:
    return "+".join(dict.fromkeys(table.trained(column).values())) or None


def _table(paper: str, name: str) -> specs.Table:
    tables = specs.tables(paper)
    if name not in tables:
        raise ValueError(f"{paper} has no table{specs.near(name, tables)}")
    return tables[name]


def with_meta(schema: pa.Schema, paper: str, name: str, profile: profiles.Profile, reader: Reader) -> pa.Schema:
    """`schema` with what an artefact carries: what it is, of which profile and seed, and hashes of what was read."""
    about = {"paper": paper, "name": name, "profile": profile.name}
    return schema.with_metadata({"unforge": json.dumps(paths.meta(about, profile.seed, reader.inputs), sort_keys=True)})
