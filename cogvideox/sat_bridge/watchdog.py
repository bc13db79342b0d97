"""A run that gets nowhere ends, with the stacks of all ranks: a hung reader, a dead file system, a collective that one
rank does not join.

Progress is what `tick` notes: forwards, iterations, batches of evaluations, bytes of checkpoints. A rank without any
says so (`Lifeline.stale`), and where all ranks are so each writes down what all its threads are doing. One
whose interpreter is stuck in C code cannot: there a timer of `faulthandler` ends it.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cogvideox.progress import forget, last_tick, tick
from cogvideox.sat_bridge.lifeline import Lifeline

__all__ = ["Watchdog", "tick", "watching"]

logger = logging.getLogger(__name__)

MOST_PERIOD_S = 10.0
LOOKS_IN_A_STALL = 10
STUCK = 1.5  # of the time-out: where nobody looked in the meantime, the interpreter itself is stuck
STDERR = 2
LAST_WORD_S = 1.0  # in which the other ranks have written theirs


class Watchdog:
    """Looks every few seconds whether this rank gets on. Begins with its first tick."""

    def __init__(
        self, timeout_s: float, folder: Path, lifeline: Lifeline, exit_now: Callable[[int], None] = os._exit
    ) -> None:
        self.timeout_s, self.folder, self.lifeline = timeout_s, folder, lifeline
        self._exit_now = exit_now
        self._over = threading.Event()
        self._has_barked = threading.Lock()
        self._is_stale = False
        lifeline.on_stall = self.bark

    def watch(self) -> None:
        """Until `stop`; in a thread of its own."""
        period_s = min(MOST_PERIOD_S, self.timeout_s / LOOKS_IN_A_STALL)
        while not self._over.wait(period_s):
            self.look()

    def look(self) -> None:
        """Tell the others of this rank's standstill, or of its end."""
        last = last_tick()
        if last is None:
            return
        faulthandler.dump_traceback_later(STUCK * self.timeout_s + MOST_PERIOD_S, exit=True, file=STDERR)  # once more
        what, seconds = last
        if seconds >= self.timeout_s:
            self._is_stale = True
            self.lifeline.stale(seconds, what)
        elif self._is_stale:
            self._is_stale = False
            self.lifeline.fresh()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def bark(self, words: str) -> None:
        """Write what all threads do to stderr and into the run's folder, and end this rank. `words`: who is last."""
        if not self._has_barked.acquire(blocking=False):
            return
        path = self.folder / f"rank-{self.lifeline.rank}.txt"
        stacks = self._stacks()
        os.write(STDERR, stacks)  # at once: other ranks may write there too
        with suppress(OSError):  # the file system may be what hangs or is full
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(stacks)
        # The main threads wait for each other: none fails by another's end before rank 0 has had the last word.
        if self.lifeline.size > 1:
            time.sleep(LAST_WORD_S * (1 if self.lifeline.rank == 0 else 2))
        if self.lifeline.rank == 0:
            os.write(STDERR, f"{self._verdict(words)}\n".encode())
        self._exit_now(1)

    def _stacks(self) -> bytes:
        head = f"rank {self.lifeline.rank} (pid {os.getpid()} on {socket.gethostname()}) stands still:\n"
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            return head.encode() + file.read()

    def _verdict(self, words: str) -> str:
        return (
            f"no rank has got on for {self.timeout_s:g} s (--stall-timeout-s), {words}: "
            f"look at its stack above or in {self.folder}: what its main thread waits for is what hangs (`next`: "
            "reading clips; a collective: another rank). --resume goes on from the newest checkpoint"
        )


@contextmanager
def watching(timeout_s: float, run_folder: Path, lifeline: Lifeline) -> Iterator[None]:
    """Watch this rank inside the block; with a time-out of 0 nothing is watched."""
    if not timeout_s:
        yield
        return
    forget()
    watchdog = Watchdog(timeout_s, run_folder / "stacks", lifeline)
    threading.Thread(target=watchdog.watch, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        watchdog.stop()
