"""Seconds until `unforge --help` has answered, beside an interpreter that does nothing.

    python benchmarks/startup.py [--rounds 15]

Wall time, in turn; bound: 0.3 s. The interpreter alone (`python -c pass`) is what no command can be faster than.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "unforge --help": [str(Path(sys.executable).with_name("unforge")), "--help"],
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import click'": [sys.executable, "-c", "import click"],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for index in range(options.rounds + 1):  # the first round warms up
        for name, command in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if index:
                times[name].append(time.perf_counter() - begin)
    for name, values in times.items():
        bound = {"bound": 0.3} if name.startswith("unforge") else {}
        spread = [round(min(values), 3), round(max(values), 3)]
        print(json.dumps({"figure": name, "seconds": round(statistics.median(values), 3), "range": spread, **bound}))


if __name__ == "__main__":
    main()
