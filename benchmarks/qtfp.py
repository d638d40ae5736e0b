"""What QTFP adds to a training step: its queries, its contrastive loss, and all of it for Effort, LoRA and full tuning.

    python benchmarks/qtfp.py [--rounds 15] [--threads 1] [--side 16]

The small tower with random weights on 16 random images of 128 px, whose frozen tokens are kept, as in training, of
`--side` by `--side` patches (16: 256, as the paper's tower has; the small profile trains with 8). A step is loss,
gradient and optimiser. In every round all contenders take one step, in turn, the first one changing; a ratio is the
median over rounds of the ratios of CPU time, its range the middle half of them.

- queries: a step that classifies the queries' mean beside one that classifies the class token. Goal: at most 3 % more.
- contrast: with FLCL beside the same without it, as at small scale: a quarter of each image's patches are anchors,
  compared with all patches of the batch. Goal: at most 15 % more. The same with all as anchors, as at paper scale.
- epoch: with everything of QTFP beside the same scheme without it: the ratio of training times per epoch.

Prints one JSON line per figure (issue 7, section 4).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from unforge import methods
from unforge.train import optimiser
from unforge.types import Batch

SIZE, IMAGES = 128, 16
PRINTED = {"effort": (512, 531), "lora": (621, 632), "tuned": (642, 651)}
"""Seconds of an epoch without and with QTFP. Source: QTFP, supplement, Table 5."""


def images() -> Batch:
    torch.manual_seed(0)
    names = tuple(map(str, range(IMAGES)))
    return Batch(
        image=torch.rand(IMAGES, 3, SIZE, SIZE).mul(255).round().div(255),
        mask=None,
        label=torch.arange(IMAGES) % 2,
        key=names,
        unit=names,
        source=tuple((name,) for name in names),
    )


def step(side: int, batch: Batch, variant: str, **changes: Any) -> Callable[[], None]:
    """One training step of a variant."""
    torch.manual_seed(0)
    config = methods.config("qtfp", variant, "small")
    config = replace(config, clip=replace(config.clip, image_size=side), **changes)
    method = methods.build("qtfp", config).train()
    optimise = optimiser.build(config.recipe, method.parameter_groups(config.recipe.weight_decay))

    def once() -> None:
        method.loss(batch).total.backward()
        optimise.step()
        optimise.zero_grad(set_to_none=True)

    return once


def in_turn(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each call in each round; two rounds before them warm up. The first of a round changes."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(-2, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.process_time()
            calls[name]()
            if turn >= 0:
                times[name].append(time.process_time() - begin)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch, side = images(), arguments.side
    calls = {
        name: step(side, batch, name) for name in ("effort", "queries", "lora", "lora_ours", "tuned", "tuned_ours")
    }
    calls["flcl"] = step(side, batch, "no_raal")
    calls["flcl, all anchors"] = step(side, batch, "no_raal", anchors=1.0)
    calls["effort_ours"] = step(side, batch, "")
    times = in_turn(calls, arguments.rounds)
    met = []

    def report(figure: str, name: str, base: str, goal: float | None = None, **more: Any) -> None:
        ratios = [a / b for a, b in zip(times[name], times[base], strict=True)]
        ratio, quarters = statistics.median(ratios), statistics.quantiles(ratios, n=4)
        line = {"figure": figure, "patches": side * side, "ratio": round(ratio, 3)}
        line |= {"middle half": [round(quarters[0], 3), round(quarters[2], 3)]}
        line |= {f"{one} ms": round(1000 * statistics.median(times[one]), 1) for one in (base, name)}
        print(json.dumps(line | {"goal": goal, "met": None if goal is None else ratio <= goal} | more), flush=True)
        met.append(goal is None or ratio <= goal)

    report("queries", "queries", "effort", 1.03)
    report("contrast", "flcl", "queries", 1.15)
    report("contrast, all anchors", "flcl, all anchors", "queries")
    for scheme, (without, with_) in PRINTED.items():
        report(f"epoch, {scheme}", f"{scheme}_ours", scheme, printed=round(with_ / without, 3))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
