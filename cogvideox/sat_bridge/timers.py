"""Timers with SAT's interface and no host synchronisation at start and stop.

SAT's own call `torch.cuda.synchronize()` twice per measured piece, more than eight times a step, and fail on a CPU.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from cogvideox.platform import elapsed_events, record_event

logger = logging.getLogger(__name__)

# Waiting for data and whole intervals happen on the host; all else is timed where the work is done.
HOST_TIMERS = frozenset({"interval time", "data loader", "batch generator"})


class Timer:
    """Accumulates the seconds between `start` and `stop`, on the host's clock or on the device's timeline."""

    def __init__(self, on_host: bool) -> None:
        self._now: Callable[[], Any] = time.perf_counter if on_host else record_event
        self._spans: list[tuple] = []
        self._added_s = 0.0
        self._started: Any = None

    @property
    def running(self) -> bool:
        """Whether `start` has been called without its `stop`."""
        return self._started is not None

    def start(self) -> None:
        """Begin a span; a second start without a stop is our mistake."""
        assert self._started is None, "timer has already been started"
        self._started = self._now()

    def stop(self) -> None:
        """End the span."""
        assert self._started is not None, "timer is not started"
        self._spans.append((self._started, self._now()))
        self._started = None

    def reset(self) -> None:
        """Forget everything measured so far."""
        self._spans.clear()
        self._added_s = 0.0
        self._started = None

    def add(self, seconds: float) -> None:
        """Count `seconds` that were measured elsewhere."""
        self._added_s += seconds

    def elapsed(self, reset: bool = True) -> float:
        """Seconds so far, a span still open included; a running timer goes on running."""
        running = self.running
        if running:
            self.stop()
        seconds = self._added_s + sum(elapsed_events(start, end) for start, end in self._spans)
        if reset:
            self.reset()
        if running:
            self.start()
        return seconds


class Timers:
    """`timers(name)` gives the timer of that name, made at its first use."""

    def __init__(self) -> None:
        self._timers: dict[str, Timer] = {}

    def __call__(self, name: str) -> Timer:
        if name not in self._timers:
            self._timers[name] = Timer(on_host=name in HOST_TIMERS)
        return self._timers[name]

    def log(self, names: Iterable[str], normalizer: float = 1.0, reset: bool = True) -> None:
        """Write the named timers' milliseconds per `normalizer` iterations to the debug log."""
        if not logger.isEnabledFor(logging.DEBUG):
            for name in names:
                if reset and name in self._timers:
                    self._timers[name].reset()
            return
        known = [name for name in names if name in self._timers]
        pieces = [f"{name} {1000 * self._timers[name].elapsed(reset) / normalizer:.1f}" for name in known]
        logger.debug("ms per iteration: %s", ", ".join(pieces))
