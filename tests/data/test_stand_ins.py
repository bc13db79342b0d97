"""What stands in for a sample. Truth: the choice is a function of data and draw; a file that hangs costs once."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from cogvideox.data.checking import LeftOut
from cogvideox.data.clips import StillReading, within
from cogvideox.data.mixture import REPLACED
from cogvideox.data.reading import UnreadableVideo
from cogvideox.data.stand_ins import PatientReads, first_usable, once_around
from cogvideox.errors import UserError


def test_once_around_the_part() -> None:
    """Golden values: from the sample on, each of its part once."""
    assert list(once_around([1, 4, 6, 9], 6)) == [6, 9, 1, 4]
    assert list(once_around(range(3), 0)) == [0, 1, 2]


def test_the_first_that_can_be_used_tells_of_those_before_it() -> None:
    """Golden values; nothing behind it is tried."""
    bad = [LeftOut(Path(f"{name}.mp4"), "do not decode", "is damaged") for name in "ab"]
    told = [("a.mp4", "do not decode", "is damaged"), ("b.mp4", "do not decode", "is damaged")]
    attempts = iter([*bad, {"txt": "c"}, {"txt": "d"}])
    assert first_usable(attempts, "none") == {"txt": "c", REPLACED: told} and next(attempts) == {"txt": "d"}
    assert first_usable(iter([{"txt": "a"}]), "none") == {"txt": "a"}
    with pytest.raises(UserError, match=r"none: 2 do not decode(.|\n)*b\.mp4"):
        first_usable(iter(bad), "none")


class Storage:
    """A file that answers when `is_back` is set, or at once; it counts how often it was asked."""

    def __init__(self) -> None:
        self.is_back, self.asked = threading.Event(), 0

    def slow(self) -> int:
        self.asked += 1
        self.is_back.wait(60)
        return 1

    def read(self) -> int:
        return within(0.02, self.slow)


def ends_late(reads: PatientReads, storage: Storage) -> None:
    """A read that takes too long, and then ends."""
    storage.is_back.clear()
    before = set(threading.enumerate())
    with pytest.raises(StillReading, match=r"within 0\.02 s"):
        reads.read("a", storage.read)
    storage.is_back.set()
    for thread in set(threading.enumerate()) - before:
        thread.join()


def asks(reads: PatientReads, function: Callable[[], int]) -> bool:
    """Whether the file is tried at all; the reason is that of the first time."""
    try:
        return reads.read("a", function) == 1
    except UnreadableVideo as error:
        assert str(error) == "gave no frames within 0.02 s"
        return False


def test_a_file_that_hangs_is_asked_once_until_it_answers() -> None:
    """Golden values: not while the first read goes on; another file is; once the storage is back, it is again."""
    reads, storage, before = PatientReads(), Storage(), set(threading.enumerate())
    with pytest.raises(StillReading):
        reads.read("a", storage.read)
    assert not asks(reads, storage.read) and not asks(reads, storage.read) and storage.asked == 1
    assert reads.read("b", lambda: 2) == 2
    assert pickle.loads(pickle.dumps(reads)).read("a", lambda: 1) == 1, "another process asks for itself"
    (thread,) = set(threading.enumerate()) - before
    storage.is_back.set()
    thread.join()
    assert asks(reads, storage.read)


def test_a_file_that_is_late_twice_in_a_row_is_asked_no_more() -> None:
    """Golden values: a read in time between two late ones makes it good again."""
    reads, storage = PatientReads(), Storage()
    ends_late(reads, storage)
    assert asks(reads, storage.slow)
    ends_late(reads, storage)
    ends_late(reads, storage)
    asked = storage.asked
    assert not asks(reads, storage.slow) and storage.asked == asked


def test_a_failure_of_one_draw_is_not_kept() -> None:
    """Identity: a file that does not decode with one draw is read with the next."""
    reads = PatientReads()

    def damaged() -> int:
        raise UnreadableVideo("is damaged at 1 s")

    with pytest.raises(UnreadableVideo, match="damaged"):
        reads.read("a", damaged)
    assert reads.read("a", lambda: 1) == 1


class File:
    """Something that is open as long as it is kept."""


def test_a_failed_read_keeps_nothing_open() -> None:
    """Identity: what a failed read had open is let go of with its error, without the collector, which runs seldom."""
    opened: list[weakref.ref[File]] = []

    def fails() -> None:
        file = File()
        opened.append(weakref.ref(file))
        raise UnreadableVideo("is damaged")

    before = set(threading.enumerate())
    gc.disable()
    try:
        with pytest.raises(UnreadableVideo) as caught:
            within(60, fails)
        del caught
        for thread in set(threading.enumerate()) - before:
            thread.join()
        assert opened[0]() is None
    finally:
        gc.enable()
