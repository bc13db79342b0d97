"""Questions asked in threads: order, errors, and storage that never answers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cogvideox.data.checking import LISTED_FILES, LeftOut, Unanswered, answer_all, describe


def test_answers_keep_the_order() -> None:
    """Identity: the same as a loop, whatever finishes first."""

    def ask(number: int) -> int:
        time.sleep(0.01 if number % 3 == 0 else 0)
        return number * number

    assert answer_all(ask, range(50)) == [number * number for number in range(50)]
    assert answer_all(ask, []) == []


def test_errors_come_out() -> None:
    """Identity: an error in a thread is the caller's error, not a wait."""
    with pytest.raises(ZeroDivisionError):
        answer_all(lambda number: 1 // number, [2, 1, 0, 4])


def test_storage_that_hangs_is_given_up() -> None:
    """Golden value: the others are answered; the one that hangs is named, within the stall time."""
    never = threading.Event()

    def ask(number: int) -> int:
        if number == 3:
            never.wait()
        return number

    started = time.monotonic()
    assert answer_all(ask, range(6), threads=2, stall_s=0.3) == [0, 1, 2, Unanswered(3), 4, 5]
    assert time.monotonic() - started < 3
    never.set()


def test_description_is_bounded() -> None:
    """Golden values: counts by kind, then a bounded list."""
    left_out = [LeftOut(Path(f"{i}.mp4"), "too short" if i % 4 else "not readable", f"why {i}") for i in range(100)]
    lines = describe(left_out).splitlines()
    assert lines[0] == "75 too short, 25 not readable"
    assert lines[1] == "  0.mp4: why 0"
    assert len(lines) == LISTED_FILES + 2 and lines[-1] == f"  … and {100 - LISTED_FILES} more"
