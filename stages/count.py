"""Parameters and MACs of every variant of a method at paper scale: `python stages/count.py sparsevit`."""

from __future__ import annotations

import argparse
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from unforge import counts, paths, profiles

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        rows = counts.rows(arguments.method)
        with paths.writing_file(paths.counts(profiles.load(arguments.profile).name, arguments.method)) as file:
            pq.write_table(pa.Table.from_pylist(rows), file)
    except ValueError as error:
        sys.exit(f"count {arguments.method}: {error}")
