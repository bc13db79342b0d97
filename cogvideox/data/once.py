"""What is found out of a file once, whoever asks for it how often, as long as the file stays what it is."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from cogvideox.data.reading import UnreadableVideo

Found = TypeVar("Found")

COST_OF_ANY = 1000
"""What keeping any answer costs at least, in the unit of `cost`."""


@dataclass(frozen=True)
class _Fault:
    """Why a file is unreadable; the error itself would hold on to all that it came through."""

    reason: str


class Once(Generic[Found]):
    """The answers of `find` by path, size, time and inode; also that a file is unreadable. Threads may share it.

    Answers are let go of, those first that were not asked for longest, where all cost more than `most` together.
    """

    def __init__(self, find: Callable[[Path], Found], cost: Callable[[Found], int], most: int) -> None:
        self._find, self._cost, self._most = find, cost, most
        self._answers: OrderedDict[tuple[object, ...], Future[Found | _Fault]] = OrderedDict()
        self._costs: dict[tuple[object, ...], int] = {}
        self._total = 0
        self._lock = threading.Lock()

    def of(self, path: Path) -> Found:
        """What `find` gives or gave for `path`; where another thread is about it, its answer. Raises what it raised."""
        try:
            status = path.stat()
        except OSError as error:
            raise UnreadableVideo(f"cannot be read as a video ({error.strerror})") from error
        key = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            answer = self._answers.pop(key, None)
            is_first = answer is None
            answer = self._answers[key] = answer or Future()
        if is_first:
            self._fill(key, answer, path)
        found = answer.result()
        if isinstance(found, _Fault):
            raise UnreadableVideo(found.reason)
        return found

    def _fill(self, key: tuple[object, ...], answer: Future[Found | _Fault], path: Path) -> None:
        cost = COST_OF_ANY
        try:
            found = self._find(path)
            cost += self._cost(found)
            answer.set_result(found)
        except UnreadableVideo as error:
            answer.set_result(_Fault(str(error)))
        except BaseException as error:
            answer.set_exception(error)
        with self._lock:
            if key in self._answers:
                self._total += cost - self._costs.get(key, 0)
                self._costs[key] = cost
            while self._total > self._most and self._answers:
                oldest, _ = self._answers.popitem(last=False)
                self._total -= self._costs.pop(oldest, 0)
