"""Signals of a model's images and of others: `python stages/signals.py iar_provenance/rar/inverse/s0 --testsets …`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from unforge import paths, profiles
from unforge.provenance import controls, score
from unforge.shards import ShardSet
from unforge.train import distributed


def stage(run: str, testsets: list[str], costly: Mapping[str, list[str]], profile: profiles.Profile) -> None:
    _, name, encoder, _ = run.split("/")
    device = distributed.prepare(profile.machine)
    model = score.load(profile.name, name, encoder, device)
    bases = sorted({controls.parse(testset)[0] for testset in testsets})
    sets = {base: ShardSet(paths.shards(profile.name, base)) for base in bases}
    with paths.writing(paths.scores(profile.name, run)) as target:
        score.write(
            target, run, model, sets, testsets, costly, scale=profile.scale("signals", name), said=profile.model,
            device=device, seed=profile.seed,
        )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="iar_provenance/<model>/<encoder>/s0")
    parser.add_argument("--testsets", required=True, help="names, separated by commas")
    parser.add_argument("--on", action="append", default=[], help="SIGNAL=TESTSETS of a costly signal")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        wanted = {signal: names.split(",") for signal, _, names in (text.partition("=") for text in arguments.on)}
        stage(arguments.run, arguments.testsets.split(","), wanted, profiles.load(arguments.profile))
    except (ValueError, OSError) as error:
        sys.exit(f"signals {arguments.run}: {error}")
