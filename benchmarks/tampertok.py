"""Mask tokens with the KV cache beside the same model without it, TamperTok beside LISA, and soft decoding in one pass.

    python benchmarks/tampertok.py [--rounds 5] [--threads 1] [--latents 32]

Small models with random weights on one random image of 256 px; speed does not depend on what was learnt. In every round
all contenders run on the same image, in turn, the first one changing; a ratio is the median over rounds of the ratios
of CPU time. `--latents`: mask tokens of an answer (the small codebook has 8, the paper's 32).

- generation: tokens/s of greedy decoding with the cache and without it, after the image was seen; same tokens.
- prediction: images/s of TamperTok (expert, vision tower, generation, soft decoding) and of LISA (answer, then SAM).
- soft decoding of 16 masks in one pass, and one by one; same masks within 1e-5.

Prints one JSON line per figure. Goals (issue 5, section 5): the cache is faster; one pass is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch

from unforge import methods

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.turns import Times, in_turn

SIZE, MASKS = 256, 16


def report(figure: str, times: Times, fast: str, slow: str, units: float, unit: str, goal: float | None) -> bool:
    """One line: how many times as fast the one is as the other, and what both do a second."""
    ratios = [b / a for a, b in zip(times[fast], times[slow], strict=True)]
    ratio = statistics.median(ratios)
    rates = {f"{name} {unit}/s": round(units / statistics.median(times[name]), 1) for name in (fast, slow)}
    met = None if goal is None else ratio >= goal
    line = {"figure": figure, "ratio": round(ratio, 2), "range": [round(min(ratios), 2), round(max(ratios), 2)]}
    print(json.dumps({**line, **rates, "goal": goal, "met": met}), flush=True)
    return met is not False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--latents", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = methods.config("tampertok", "", "small")
    config = replace(config, masks=replace(config.masks, latents=arguments.latents))
    method = methods.build("tampertok", config).eval()
    lisa = methods.build("lisa", methods.config("lisa", "", "small")).eval()
    image = torch.rand(1, 3, SIZE, SIZE)
    met = []
    with torch.inference_mode():
        tiles = method.model.tiles(image)
        seen = method.see(tiles.values, method.expert_maps(tiles.shown), tiles.counts)
        assert torch.equal(method.write(seen).codes, method.write(seen, cache=False).codes)
        times = in_turn(
            {"cached": lambda: method.write(seen), "uncached": lambda: method.write(seen, cache=False)},
            arguments.rounds,
        )
        met.append(report("generation", times, "cached", "uncached", arguments.latents, "tokens", 1.0))
        times = in_turn(
            {"tampertok": lambda: method.predict(image), "lisa": lambda: lisa.predict(image)}, arguments.rounds
        )
        report("prediction, beside LISA", times, "tampertok", "lisa", 1, "images", None)
        weights = torch.rand(MASKS, arguments.latents, config.masks.codes).softmax(-1)
        decode = method.masks.decode_soft
        each = torch.cat([decode(weights[i : i + 1]) for i in range(MASKS)])
        assert torch.allclose(decode(weights), each, atol=1e-5)
        times = in_turn(
            {
                "one pass": lambda: decode(weights),
                "one by one": lambda: [decode(weights[i : i + 1]) for i in range(MASKS)],
            },
            arguments.rounds,
        )
        met.append(report("soft decoding", times, "one pass", "one by one", MASKS, "masks", 1.0))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
