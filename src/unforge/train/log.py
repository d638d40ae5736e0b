"""`log.parquet`: what a run measured while it trained. No times: equal runs give equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema([("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())])


def write(path: Path, rows: Sequence[tuple[int, str, float]], about: Mapping[str, Any]) -> None:
    """Write (step, name, value) rows in their order; `about` becomes the file's metadata `unforge`."""
    schema = SCHEMA.with_metadata({"unforge": json.dumps(dict(about), sort_keys=True)})
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    pq.write_table(pa.table([pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], schema=schema), path)
