"""Calls of a service that may hang, one after the other in a thread of their own: the training never waits for them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

MOST_WAITING = 10_000
"""Calls that are kept for a service that does not answer; what comes then is let go."""

Call = Callable[[], object]


class Background:
    """Makes calls in order, in a daemon thread: one that never returns does not hold up the end of the process."""

    def __init__(self, name: str, most_waiting: int = MOST_WAITING) -> None:
        self._calls: queue.Queue[Call] = queue.Queue(most_waiting)
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, function: Call) -> bool:
        """Have `function` called after those before it; returns at once. False where too many wait already."""
        try:
            self._calls.put_nowait(function)
        except queue.Full:
            return False
        return True

    def wait(self, function: Call, seconds: float) -> bool:
        """Have `function` called like the others, and wait until it has returned. False where that takes longer."""
        done = threading.Event()

        def call() -> None:
            try:
                function()
            finally:
                done.set()

        return self.call(call) and done.wait(seconds)

    def _work(self) -> None:
        while True:
            function = self._calls.get()
            # Whatever ends one call, SystemExit too, the next ones are still made. Callers tell of errors themselves.
            with contextlib.suppress(BaseException):
                function()
