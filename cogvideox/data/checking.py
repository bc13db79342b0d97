"""Looking at many files at once: every file gets an answer, and what is left out is told in a few lines."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

_logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")

LISTED_FILES = 20
"""Files that a report names; the others it counts."""


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
    ask: Callable[[Item], Answer], items: Sequence[Item], threads: int = 8, stall_s: float = 60.0
) -> list[Answer | Unanswered[Item]]:
    """`ask(item)` for every item, in threads; answers in the order of `items`. What `ask` raises is raised here.

    Bounded by a stall, not by a total: when no answer at all has come for `stall_s` seconds, what is still open is
    given up. A total would leave out other files on a slow rank than on a fast one. The threads are daemons, so that
    one that hangs in a dead file system does not hold up the exit.
    """
    answers: dict[int, Answer] = {}
    finished: queue.SimpleQueue[tuple[int, Answer] | Exception] = queue.SimpleQueue()
    positions = itertools.count()

    def work() -> None:
        try:
            while (position := next(positions)) < len(items):
                finished.put((position, ask(items[position])))
        except Exception as error:
            finished.put(error)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, name="check-clips", daemon=True).start()
    try:
        while len(answers) < len(items):
            result = finished.get(timeout=stall_s)
            if isinstance(result, Exception):
                raise result
            answers[result[0]] = result[1]
            if len(answers) % 5000 == 0:
                _logger.info("looked at %d of %d clips", len(answers), len(items))
    except queue.Empty:
        _logger.error("no answer from the storage for %.0f s; %d clips open", stall_s, len(items) - len(answers))
    return [answers[position] if position in answers else Unanswered(item) for position, item in enumerate(items)]


def describe(left_out: Sequence[LeftOut]) -> str:
    """Counts by kind, then at most LISTED_FILES lines of `file: reason`."""
    counts = Counter(each.kind for each in left_out)
    lines = [", ".join(f"{count} {kind}" for kind, count in counts.most_common())]
    lines += [f"  {each.video}: {each.reason}" for each in left_out[:LISTED_FILES]]
    if len(left_out) > LISTED_FILES:
        lines.append(f"  … and {len(left_out) - LISTED_FILES} more")
    return "\n".join(lines)
