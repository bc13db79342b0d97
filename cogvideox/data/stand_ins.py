"""What stands in for a sample that cannot be read: the same for the same draw, whatever workers and resumes there are.

The samples after it are tried one by one with its own draw, so that the choice is a function of the data and the draw.
Nothing that a process went through before may change it: remembered are only failures that no draw changes, and what
is remembered is what trying again would find.

A file that hangs is such a failure, but trying it again costs `timeout_s`. A read that gave nothing in time goes on in
its thread, and while it does, the storage owes an answer and its file is not tried again: a dead file costs its time
once in a process, and one whose storage recovers is read again. A file that answers late, but too late, is not tried
any more after the second time in a row; else a slow one would cost its time at every draw. Only there may workers
differ for a while: where a file is at times in time and at times not, no rule could make them agree.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar

from cogvideox.data.checking import LeftOut, describe
from cogvideox.data.clips import StillReading
from cogvideox.data.mixture import REPLACED, Part
from cogvideox.errors import UserError

T = TypeVar("T")

MOST_TIMES_LATE = 2


def once_around(part: Part, index: int) -> Iterator[int]:
    """The samples of `part`, which is in order, each once: `index`, those after it, then those before it."""
    first = bisect_left(part, index)
    for step in range(len(part)):
        yield int(part[(first + step) % len(part)])


def first_usable(attempts: Iterable[dict[str, Any] | LeftOut], fault: str) -> dict[str, Any]:
    """The first of `attempts` that is a sample; those before it are told under REPLACED. UserError: there is none."""
    failed: list[LeftOut] = []
    for made in attempts:
        if not isinstance(made, LeftOut):
            replaced = [(str(each.video), each.kind, each.reason) for each in failed]
            return made | ({REPLACED: replaced} if replaced else {})
        failed.append(made)
    raise UserError(f"{fault}: {describe(failed)}")


class PatientReads:
    """Reads that may hang, by the file that they read; for `clips.within`, whose threads outlive its time."""

    def __init__(self) -> None:
        self._late: dict[Hashable, tuple[threading.Thread, int, str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_late": {}}  # threads stay in their process

    def read(self, file: Hashable, function: Callable[[], T]) -> T:
        """What `function` gives of `file`. Raises UnreadableVideo as it does, at once where the file hangs."""
        times = 0
        if file in self._late:
            thread, times, reason = self._late[file]
            if thread.is_alive() or times >= MOST_TIMES_LATE:
                raise StillReading(reason, thread)
        try:
            found = function()
        except StillReading as error:
            self._late[file] = (error.thread, times + 1, str(error))
            raise
        self._late.pop(file, None)
        return found
