"""QuantLoss beside the paper's two baselines, nearest codes beside `torch.cdist`, and the memory of the token search.

    python benchmarks/provenance.py [--rounds 3] [--threads 1] [--parts llamagen,var,nearest,search] [--small]

Tokenizers of the paper's scale with random weights, one random image of 256 px. In every round all contenders run on
the same image, in turn, the first one changing; a ratio is the median over rounds of the ratios of CPU time. Every
contender is `provenance.signals.measure`, and so makes the passes that its signals need and no other: QuantLoss (an
encoder and a quantization), Reconstruction (and a decoder), AEDR (two encoders, two decoders), and QuantLoss,
calibrated EncLoss and combined together. The paper claims 0.5 and 0.25; multiply-adds allow 0.35 and 0.18.

Nearest codes of 16,384: features of a batch of images at once; indices must be those of `torch.cdist` + argmin.
The peak of the search is that of a process of its own, over what it held before: a batch of as many images as the
search itself takes at a time, at VAR's size; memory does not depend on how many steps are made, so there are few.

Prints one JSON line per figure: {"figure", "ratio" or "GiB", "range", "goal", "met"}; exits with 1 if a goal is not
met. Goals: issue 4, section 5. `--small` tries the script with small tokenizers and few codes, without goals.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import sys
from pathlib import Path

import psutil
import torch

from unforge import tokenizers
from unforge.methods.iar_provenance import SIGNALS
from unforge.provenance import search, signals
from unforge.provenance.config import Search
from unforge.tokenizers.multiscale import MultiScale
from unforge.tokenizers.quantizers import nearest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.turns import Times, in_turn

SIZE = 256
PARTS = ("llamagen", "var", "nearest", "search")
GOALS = {("quant_loss", "reconstruction"): 0.40, ("quant_loss", "aedr"): 0.20, ("signals", "aedr"): 1.05}
NEAREST_GOAL, MEMORY_GOAL = 1.3, 0.8
CODES, CHANNELS, FEATURES = 16384, (8, 32), (576, 2304)
"""Features: the places of one LlamaGen image of 384 px, and of four."""


def report(figure: str, unit: str, values: list[float], goal: float | None, at_least: bool = False) -> bool:
    """Print the median and the range; whether the goal is met."""
    value = statistics.median(values)
    met = goal is None or (value >= goal if at_least else value <= goal)
    line = {"figure": figure, unit: round(value, 3), "range": [round(min(values), 3), round(max(values), 3)]}
    print(json.dumps(line if goal is None else line | {"goal": goal, "met": met}), flush=True)
    return met


def ratios(times: Times, left: str, right: str) -> list[float]:
    return [a / b for a, b in zip(times[left], times[right], strict=True)]


def passes(family: str, rounds: int, small: bool) -> list[bool]:
    """QuantLoss, Reconstruction, AEDR and the three signals together on one image."""
    torch.manual_seed(0)
    module = tokenizers.load_module(family)
    config = module.SMALL if small else dataclasses.replace(module.Config(), image_size=SIZE)
    tokenizer = module.build(config).eval().requires_grad_(False)
    image = torch.rand(1, 3, config.image_size, config.image_size)
    calls = {name: lambda names=names: signals.measure(tokenizer, image, names) for name, names in SIGNALS.items()}
    times = in_turn(calls, rounds)
    for name, seconds in times.items():
        report(f"{family} {config.image_size} px: {name}", "seconds", seconds, None)
    return [
        report(f"{family}: {left} / {right}", "ratio", ratios(times, left, right), None if small else goal)
        for (left, right), goal in GOALS.items()
    ]


def nearest_code(rounds: int, small: bool) -> list[bool]:
    """Ours against distances of all features to all codes and their argmin."""
    met = []
    for channels in CHANNELS:
        for count in FEATURES:
            generator = torch.Generator().manual_seed(channels)
            codebook = torch.randn(256 if small else CODES, channels, generator=generator)
            features = torch.randn(count, channels, generator=generator)
            found: dict[str, torch.Tensor] = {}

            def ours(features=features, codebook=codebook, found=found) -> None:
                found["ours"] = nearest(features, codebook)

            def plain(features=features, codebook=codebook, found=found) -> None:
                found["cdist"] = torch.cdist(features, codebook).argmin(1)

            times = in_turn({"ours": ours, "cdist": plain}, rounds)
            name = f"nearest of {len(codebook)} codes, C = {channels}, {count} features: cdist + argmin / ours"
            met.append(report(name, "ratio", ratios(times, "cdist", "ours"), None if small else NEAREST_GOAL, True))
            same = torch.equal(found["ours"], found["cdist"])
            print(json.dumps({"figure": f"nearest, C = {channels}, {count} features: identical indices", "met": same}))
            met.append(same)
    return met


def searched(small: bool, threads: int, answer: multiprocessing.SimpleQueue) -> None:
    """In a process of its own: images of a batch, and bytes at the peak over those held before."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module = tokenizers.load_module("var")
    config = module.SMALL if small else module.Config()
    quantizer = MultiScale(config.codes, config.channels, scales=config.scales, phis=config.phis)
    settings = Search(iterations=3, freeze=(len(config.scales) - 1,))
    side = config.scales[-1]
    # what torch itself loads at its first use is not the batch's
    search.search(
        quantizer, torch.randn(1, config.channels, side, side), torch.zeros(1, tokens(quantizer)).long(), settings
    )
    images = 4 if small else search.batch_size(quantizer, settings.memory)
    features = torch.randn(images, config.channels, side, side)
    with torch.no_grad():
        greedy = quantizer.tokens(features)
    before = psutil.Process().memory_info().rss
    search.search(quantizer, features, greedy, settings)
    status = Path("/proc/self/status").read_text()  # `ru_maxrss` would be the parent's, where that was larger
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    answer.put((images, peak - before))


def tokens(quantizer: MultiScale) -> int:
    return sum(side * side for side in quantizer.scales)


def search_memory(small: bool, threads: int) -> list[bool]:
    """Peak of one batch."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=searched, args=(small, threads, answer))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the search did not end well")
    images, peak = answer.get()
    return [report(f"token search, a batch of {images} images", "GiB", [peak / 2**30], None if small else MEMORY_GOAL)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if set(parts) - set(PARTS):
        parser.error(f"--parts {options.parts}: there is {', '.join(PARTS)}")
    torch.set_num_threads(options.threads)
    met = []
    for part in parts:
        if part == "nearest":
            met += nearest_code(3 * options.rounds, options.small)
        elif part == "search":
            met += search_memory(options.small, options.threads)
        else:
            met += passes(part, options.rounds, options.small)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
