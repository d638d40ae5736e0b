"""The answers that the images of a protocol deserve: `python stages/explain.py tampertok`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from unforge import explanations, paths, profiles
from unforge.shards import ShardSet

SCHEMA = pa.schema([("key", pa.string()), ("text", pa.string()), ("kind", pa.string()), ("dataset", pa.string())])


def stage(protocol: str, profile: profiles.Profile, written: Path | None = None) -> None:
    """`written`: a folder of texts (ForgeryAnalysis-PT), which go before what is composed."""
    listed = paths.protocol(profile.name, protocol) / "members.parquet"
    if not listed.is_file():
        raise FileNotFoundError(f"{listed} is not there: `dvc repro` makes it, `dvc pull` fetches it")
    length: explanations.Length = "short" if profile.model == "small" else "full"
    inputs = {"members": paths.sha256(listed)}
    rows: dict[str, dict[str, str]] = {}
    members = pq.read_table(listed).to_pylist()
    texts: dict[str, str] = {}
    if written is not None:
        texts, rejected = explanations.read_forgery_analysis(written, {member["key"] for member in members})
        inputs["texts"] = paths.digest(texts)
        print(f"{len(texts)} texts read; {len(rejected)} files left out: {rejected[:10]}")
    for dataset in sorted({member["dataset"] for member in members}):
        shard_set = ShardSet(paths.shards(profile.name, dataset))
        inputs[dataset] = shard_set.digest
        for key in sorted({member["key"] for member in members if member["dataset"] == dataset}):
            if key in rows:
                raise ValueError(f"{key} is in {rows[key]['dataset']} and in {dataset}: an answer is found by its key")
            kind = shard_set.row(key)["kind"]
            text = texts.get(key)
            if text is None:
                measured = explanations.cues(shard_set.image(key), shard_set.mask(key))
                text = explanations.compose(measured, kind, length)
            rows[key] = {"key": key, "text": text, "kind": kind, "dataset": dataset}
    meta = paths.meta({"protocol": protocol, "length": length}, profile.seed, inputs)
    schema = SCHEMA.with_metadata({"unforge": json.dumps(meta, sort_keys=True)})
    table = pa.Table.from_pylist([rows[key] for key in sorted(rows)], schema=schema)
    with paths.writing_file(Path("data/explanations") / profile.name / f"{protocol}.parquet") as file:
        pq.write_table(table, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("protocol")
    parser.add_argument("--texts", type=Path, help="folder of texts that people wrote, one file per image")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        stage(arguments.protocol, profiles.load(arguments.profile), arguments.texts)
    except (ValueError, OSError) as error:
        sys.exit(f"explain {arguments.protocol}: {error}")
