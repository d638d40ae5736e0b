"""How the benchmarks compare: contenders in turn, in the same process, by CPU time. Measures nothing by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

Times = dict[str, list[float]]


def in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> Times:
    """CPU seconds of each call in each round; the round before them warms up. The first of a round changes."""
    times: Times = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.process_time()
            calls[name]()
            if turn:
                times[name].append(time.process_time() - begin)
    return times
