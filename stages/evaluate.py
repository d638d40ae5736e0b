"""Score a run on test sets: `python stages/evaluate.py sparsevit/catnet/full/s0 --testsets casia1,casia1~jpeg70`."""

from __future__ import annotations

import argparse
import sys

from unforge import evaluate, methods, paths, profiles
from unforge.shards import ShardSet
from unforge.train import distributed


def stage(name: str, testsets: list[str], profile: profiles.Profile) -> None:
    machine = profile.machine
    folder = paths.run(profile.name, name)
    run = evaluate.read_run(folder, name)
    count = profile.scale("evaluate", str(run.about["method"]))["samples"]
    device = distributed.prepare(machine)
    method = methods.load(folder).to(device)
    samples: list[dict[str, object]] = []
    inputs = {name: run.sha256}
    with paths.writing(paths.scores(profile.name, name)) as target:
        for testset in testsets:
            shard_set = ShardSet(paths.shards(profile.name, testset))
            scored = evaluate.evaluate(
                method, shard_set, run=run, testset=testset, device=device, dtype=machine.dtype,
                workers=machine.workers, samples=count, redistribute=shard_set.redistribute,
            )  # fmt: skip
            evaluate.write(target, testset, scored, run, shard_set.data)
            samples += scored.samples
            inputs[testset] = shard_set.digest
        evaluate.write_samples(target, samples, run)
        paths.write_json(
            target / "meta.json", paths.meta({"run": name, "testsets": testsets, **run.about}, run.seed, inputs)
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--testsets", required=True, help="names, separated by commas")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        names = [name for name in arguments.testsets.split(",") if name]
        stage(arguments.run, names, profiles.load(arguments.profile))
    except (ValueError, OSError, evaluate.EvaluationError) as error:
        sys.exit(f"evaluate {arguments.run}: {error}")
