"""Parameters and MACs of every variant of a method at paper scale: `python stages/count.py sparsevit`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unforge import methods, paths, profiles


def trained(method: str) -> list[dict[str, Any]]:
    """Rows of part `trainable`, for a method whose module has `TRAINABLE`: parameters that learn; MACs of the whole."""
    import torch

    module, rows = methods.load_module(method), []
    for variant in module.VARIANTS if getattr(module, "TRAINABLE", False) else ():
        config = methods.config(method, variant, "paper")
        with torch.device("meta"):
            model = module.build(config, {})
        learnt = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        found = {"method": method, "variant": variant, "part": "trainable", "input_size": config.count_size}
        rows.append({**found, "params": learnt})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        rows = methods.all_counts(arguments.method)
        macs = {row["variant"]: row["macs"] for row in rows if row["part"] == ""}
        rows += [{**row, "macs": macs[row["variant"]]} for row in trained(arguments.method)]
        with paths.writing_file(paths.counts(profiles.load(arguments.profile).name, arguments.method)) as file:
            pq.write_table(pa.Table.from_pylist(rows), file)
    except ValueError as error:
        sys.exit(f"count {arguments.method}: {error}")
