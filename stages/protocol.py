"""Who may be trained on, without what a test set holds: `python stages/protocol.py catnet --testsets casia1,nist16`."""

from __future__ import annotations

import argparse
import sys

import pyarrow.parquet as pq

from unforge import datasets, paths, profiles
from unforge.datasets import near_duplicates
from unforge.shards import ShardSet

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("protocol")
    parser.add_argument("--testsets", required=True, help="names, separated by commas: nothing of these is trained on")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        profile = profiles.load(arguments.profile)
        module = datasets.load(arguments.protocol)
        members = {member.partition("/")[0] for member in module.MEMBERS}
        sets = {name: ShardSet(paths.shards(profile.name, name)) for name in {*members, *arguments.testsets.split(",")}}
        tests = {name: sets[name] for name in arguments.testsets.split(",")}
        kept, leaks = near_duplicates.members(module, {name: sets[name] for name in members}, tests)
        folder = paths.protocol(profile.name, arguments.protocol)
        for part, table in {"members": kept, "leaks": leaks}.items():
            with paths.writing_file(folder / f"{part}.parquet") as file:
                pq.write_table(table, file)
        print(f"{kept.num_rows} images to learn from; {leaks.num_rows} pairs with a test image were left out")
    except (ValueError, OSError) as error:
        sys.exit(f"protocol {arguments.protocol}: {error}")
