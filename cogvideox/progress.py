"""What this process did last, and when: noted by `tick` where work gets done, watched by `sat_bridge/watchdog.py`.

What counts is what the main thread gets done: that another one writes a checkpoint says nothing of a main thread that
hangs, unless it waits for just that (`waiting_for_others`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class _Last:
    what: str = ""
    at: float | None = None
    others_count: bool = False


_last = _Last()


def tick(what: str) -> None:
    """This process gets on: `what` was done just now ("a forward"). Costs less than a microsecond."""
    if _last.others_count or threading.current_thread() is threading.main_thread():
        _last.what, _last.at = what, time.monotonic()


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """Inside, what other threads get done is progress too."""
    before, _last.others_count = _last.others_count, True
    try:
        yield
    finally:
        _last.others_count = before


def last_tick() -> tuple[str, float] | None:
    """What was done last and how many seconds ago; None before the first."""
    return None if _last.at is None else (_last.what, time.monotonic() - _last.at)


def forget() -> None:
    """Begin anew, as before the first tick."""
    _last.what, _last.at = "", None
