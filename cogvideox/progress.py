"""What this process did last, and when: noted by `tick` where work gets done, watched by `sat_bridge/watchdog.py`."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class _Last:
    what: str = ""
    at: float | None = None


_last = _Last()


def tick(what: str) -> None:
    """This process gets on: `what` was done just now ("a forward"). Costs less than a microsecond."""
    _last.what, _last.at = what, time.monotonic()


def last_tick() -> tuple[str, float] | None:
    """What was done last and how many seconds ago; None before the first."""
    return None if _last.at is None else (_last.what, time.monotonic() - _last.at)


def forget() -> None:
    """Begin anew, as before the first tick."""
    _last.what, _last.at = "", None
