"""Looking at many files at once: every file gets an answer, and what is left out is told in a few lines."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from cogvideox.errors import UserError
from cogvideox.progress import tick

_logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")

LISTED_FILES = 20
"""Files that a report names; the others it counts."""

MOST_UNANSWERED, MOST_HANGING = 0.2, 1000
"""The share of the files, and their number (each holds a thread), from which on the storage itself is at fault."""

SHORTEST_PATIENCE = 1 / 16
"""Of `stall_s`: how long a thread is waited for before another takes its place, where many hang already."""

LOOKS_IN_A_STALL = 64


@dataclass(frozen=True)
class LeftOut:
    """A clip that is not trained on. `kind` groups the report's counts; `reason` says what is wrong with this file."""

    video: Path
    kind: str
    reason: str


@dataclass(frozen=True)
class Unanswered(Generic[Item]):
    """Storage gave no answer about `item` in time."""

    item: Item


def answer_all(
    ask: Callable[[Item], Answer],
    items: Sequence[Item],
    threads: int = 8,
    stall_s: float = 60.0,
    doing: str = "looked at",
) -> list[Answer | Unanswered[Item]]:
    """`ask(item)` for every item, in threads; answers in the order of `items`. What `ask` raises is raised here.

    Where a thread waits for one answer longer than `stall_s`, another takes its place, and the rest goes on; the more
    hang, the sooner, but not sooner than slow answers come. Its answer still counts as long as others come. What hangs
    is given up when nothing else is left to wait for and no answer has come for `stall_s`. UserError: none has, and too
    many hang (MOST_UNANSWERED, MOST_HANGING). The threads are daemons, so that one that hangs in a dead file system
    does not hold up the exit.
    """
    return _Asking(ask, items, threads, stall_s).all_answers(doing)


class _Asking(Generic[Item, Answer]):
    """The threads that ask, what they have found, and which of them hang."""

    def __init__(self, ask: Callable[[Item], Answer], items: Sequence[Item], threads: int, stall_s: float) -> None:
        self._ask, self._items, self._threads, self._stall_s = ask, items, threads, stall_s
        self._positions = itertools.count()
        self._finished: queue.SimpleQueue[tuple[int, Answer, float] | Exception] = queue.SimpleQueue()
        self._answers: dict[int, Answer] = {}
        self._asked_at: dict[int, float] = {}  # of the items without an answer, that are asked about
        self._hanging: set[int] = set()  # those of them whose thread was replaced
        self._slow_s = 0.0  # how long slow answers take, of late

    def all_answers(self, doing: str) -> list[Answer | Unanswered[Item]]:
        for _ in range(min(self._threads, len(self._items))):
            self._start_thread()
        answered_at = looked_at = time.monotonic()
        while len(self._answers) < len(self._items):
            with suppress(queue.Empty):
                self._take(self._finished.get(timeout=self._stall_s / LOOKS_IN_A_STALL))
                answered_at = time.monotonic()
                if len(self._answers) % 5000 == 0:
                    _logger.info("%s %d of %d files", doing, len(self._answers), len(self._items))
            now = time.monotonic()
            if now - looked_at < self._stall_s / LOOKS_IN_A_STALL:
                continue
            looked_at = now
            self._replace_hanging(now)
            if now - answered_at >= self._stall_s:
                self._refuse_too_many()
            if self._is_at_the_end() and now - max([answered_at, *self._asked_at.values()]) >= self._stall_s:
                break
        if self._hanging:
            _logger.error("the storage gave no answer about %d of %d files", len(self._hanging), len(self._items))
        return [self._answers.get(place, Unanswered(item)) for place, item in enumerate(self._items)]

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, name="check-clips", daemon=True).start()

    def _work(self) -> None:
        try:
            while (position := next(self._positions)) < len(self._items):
                self._asked_at[position] = time.monotonic()
                answer = self._ask(self._items[position])
                took_s = time.monotonic() - self._asked_at.pop(position)
                is_replaced = position in self._hanging
                self._finished.put((position, answer, took_s))
                if is_replaced:
                    return
        except Exception as error:
            self._finished.put(error)

    def _take(self, result: tuple[int, Answer, float] | Exception) -> None:
        if isinstance(result, Exception):
            raise result
        position, answer, took_s = result
        self._slow_s = max(took_s, 0.99 * self._slow_s)
        self._answers[position] = answer
        self._hanging.discard(position)
        tick("a look at a file")

    def _replace_hanging(self, now: float) -> None:
        """Start a thread for each one that has waited too long."""
        patience_s = self._stall_s * max(SHORTEST_PATIENCE, 0.5 ** (len(self._hanging) // self._threads))
        # Where storage is slow and not dead, more threads would only make it slower.
        patience_s = max(patience_s, 2 * self._slow_s)
        late = [
            position
            for position, since in self._asked_at.copy().items()
            if now - since >= patience_s and position not in self._hanging
        ]
        if not late:
            return
        if not self._hanging:
            text = "%s: no answer from the storage for %g s; going on with the others"
            _logger.warning(text, self._items[late[0]], patience_s)
        self._hanging.update(late)
        if len(self._hanging) <= MOST_HANGING:
            for _ in late:
                self._start_thread()

    def _refuse_too_many(self) -> None:
        if len(self._hanging) > min(MOST_HANGING, MOST_UNANSWERED * len(self._items)):
            raise UserError(
                f"the storage gives no answer about {len(self._hanging)} of {len(self._items)} files, "
                f"{self._items[min(self._hanging)]} among them: "
                "see whether it can be reached, or take these files out of the data"
            )

    def _is_at_the_end(self) -> bool:
        return len(self._answers) + len(self._hanging) == len(self._items)


def describe(left_out: Sequence[LeftOut]) -> str:
    """Counts by kind, then at most LISTED_FILES lines of `file: reason`."""
    counts = Counter(each.kind for each in left_out)
    lines = [", ".join(f"{count} {kind}" for kind, count in counts.most_common())]
    lines += [f"  {each.video}: {each.reason}" for each in left_out[:LISTED_FILES]]
    if len(left_out) > LISTED_FILES:
        lines.append(f"  … and {len(left_out) - LISTED_FILES} more")
    return "\n".join(lines)
