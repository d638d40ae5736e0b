"""Try again while a network fails, with growing pauses."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 600.0
"""Seconds (UNFORGE_PATIENCE) for which something that fails is tried again."""
LONGEST = 30.0
"""Seconds of the longest pause."""

T = TypeVar("T")


def seconds(name: str, default: float) -> float:
    """A number of seconds from the environment. Raises ValueError when it is none."""
    text = os.environ.get(name, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a number of seconds") from None


def patiently(
    ask: Callable[[], T], stop: threading.Event, say: Callable[[str], None] = lambda _: None, limit: float | None = None
) -> T:
    """What `ask` returns, asked again after each ConnectionError, for `limit` seconds (default: UNFORGE_PATIENCE).

    Raises the last ConnectionError after that, InterruptedError when `stop` is set.
    """
    limit = seconds("UNFORGE_PATIENCE", PATIENCE) if limit is None else limit
    begin, pause = time.monotonic(), 1.0
    while True:
        try:
            return ask()
        except ConnectionError as error:
            gone = time.monotonic() - begin
            if gone + pause > limit:
                raise ConnectionError(f"{error} (given up after {gone:.0f} s)") from None
            say(f"{error}; again in {pause:.0f} s")
        if stop.wait(pause):
            raise InterruptedError
        pause = min(LONGEST, 2 * pause)
