"""A training step and a prediction of AAP beside those of its black box: what anchoring and the error map cost.

    python benchmarks/aap.py [--rounds 15] [--threads 1] [--batch 8]

Small models with random weights on random images of 256 px, a third of each class; speed does not depend on what was
learnt. In every round all contenders run on the same images, in turn, the first one changing; a ratio is the median
over rounds of the ratios of CPU time. Frozen tokens of training images are kept from one round to the next, as in
training; a prediction makes them.

- training: loss, gradients and step of the optimiser; the full method, and the one without error map.
- prediction: the full method (error map, injected) and the one whose map is not injected.

Prints one JSON line per figure; exits with 1 if a goal is not met. Goals (issue 6, section 4): a training step costs
at most 10 % more. For a prediction, which may cost nothing beyond the error map, multiply-adds are printed beside the
time: what the full method has over the black box must be P_phi and P_psi, to the unit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from unforge import methods
from unforge.methods import aap
from unforge.train import optimiser
from unforge.types import Batch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.turns import Times, in_turn

SIZE = 256
VARIANTS = ("", "no_map", "black_box")
GOAL = 1.10


def images(count: int) -> Batch:
    """Random images: real, fully synthetic and tampered, in turn."""
    mask = torch.zeros(count, 1, SIZE, SIZE)
    mask[1::3] = 1
    mask[2::3, :, 64:160, 32:128] = 1
    names = tuple(map(str, range(count)))
    image = (torch.rand(count, 3, SIZE, SIZE) * 255).round() / 255
    label = (torch.arange(count) % 3 > 0).long()
    return Batch(image=image, mask=mask, label=label, key=names, unit=names, source=tuple((n,) for n in names))


def training(method: aap.AAP, batch: Batch) -> Callable[[], None]:
    """One step, as the training loop makes it."""
    recipe = method.config.recipe
    groups = method.train().parameter_groups(recipe.weight_decay)
    optimise = optimiser.build(recipe, groups)
    trained = [p for group in groups for p in group["params"]]

    def step() -> None:
        method.loss(batch).total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimise.step()
        optimise.zero_grad(set_to_none=True)

    return step


def multiply_adds(module: torch.nn.Module, given: tuple) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        module(*given)
    return counter.get_total_flops() // 2


def report(figure: str, times: Times, more: str, less: str, goal: float | None) -> bool:
    """One line: how many times as long the one takes as the other, and the milliseconds of both."""
    ratios = [a / b for a, b in zip(times[more], times[less], strict=True)]
    ratio = statistics.median(ratios)
    spent = {f"{name} ms": round(1000 * statistics.median(times[name]), 1) for name in (more, less)}
    met = None if goal is None else ratio <= goal
    line = {"figure": figure, "ratio": round(ratio, 3), "range": [round(min(ratios), 3), round(max(ratios), 3)]}
    print(json.dumps({**line, **spent, "goal": goal, "met": met}), flush=True)
    return met is not False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    built = {}
    for variant in VARIANTS:
        torch.manual_seed(0)
        built[variant or "full"] = aap.build(methods.config("aap", variant, "small"), {})
    batch = images(arguments.batch)
    times = in_turn({name: training(method, batch) for name, method in built.items()}, arguments.rounds)
    met = [report("training step: full / black box", times, "full", "black_box", GOAL)]
    report("training step: no map / black box", times, "no_map", "black_box", None)

    one = batch.image[2:3]
    with torch.inference_mode():
        for method in built.values():
            method.eval()
        calls = {name: lambda method=method: method.predict(one) for name, method in built.items()}
        times = in_turn(calls, 2 * arguments.rounds)
        report("prediction: full / black box", times, "full", "black_box", None)
        report("prediction: no map / black box", times, "no_map", "black_box", None)
        full, plain = built["full"], built["black_box"]
        more = multiply_adds(full, (one,)) - multiply_adds(plain, (one,))
        side, sam_side = full.llava.side, full.segmenter.sam.grid
        parts = multiply_adds(full.projector, (torch.zeros(1, side**2, full.llava.width),))
        parts += multiply_adds(full.cue, (torch.zeros(1, 1, side, side), sam_side))
    share = more / multiply_adds(plain, (one,))
    line = {"figure": "prediction: multiply-adds over the black box", "more": more, "P_phi and P_psi": parts}
    met.append(more == parts)
    print(json.dumps({**line, "share": round(share, 4), "met": more == parts}), flush=True)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
