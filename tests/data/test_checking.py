"""Questions asked in threads: order, errors, and storage that never answers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cogvideox.data.checking import LISTED_FILES, LeftOut, Unanswered, answer_all, describe
from cogvideox.errors import UserError


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


def hanging(count: int, of: int, stall_s: float) -> tuple[list[object], float]:
    """What is answered about `of` numbers, the first `count` of which hang; and how long it took."""
    never, started = threading.Event(), time.monotonic()

    def ask(number: int) -> int:
        if number < count:
            never.wait()
        return number

    try:
        return list(answer_all(ask, range(of), stall_s=stall_s)), time.monotonic() - started
    finally:
        never.set()


def test_threads_that_all_hang_at_once_are_replaced() -> None:
    """Golden value: only what hangs is given up, the files after it are asked for by other threads."""
    answers, _ = hanging(8, of=100, stall_s=0.2)
    assert answers == [*map(Unanswered, range(8)), *range(8, 100)]


def test_hundreds_that_hang_do_not_take_a_stall_each() -> None:
    """Golden value: 160 of 8 threads would be 20 stalls; the waits get shorter, and the last is a whole one."""
    answers, seconds = hanging(160, of=1000, stall_s=0.4)
    assert answers == [*map(Unanswered, range(160)), *range(160, 1000)]
    assert seconds < 10 * 0.4


def test_storage_that_hangs_as_a_whole_is_an_error() -> None:
    """Golden values: a fifth of the files may hang, and not more."""
    with pytest.raises(UserError, match=r"no answer about 2\d of 100 files, 0 among them"):
        hanging(100, of=100, stall_s=0.2)
    with pytest.raises(UserError, match=r"no answer about \d of 6 files"):
        hanging(6, of=6, stall_s=0.1)


def test_slow_storage_is_not_asked_by_more_threads() -> None:
    """Identity: beside 16 that hang, the waits are no shorter than what an answer takes: four ask, as at first."""
    never, lock, at_once, most = threading.Event(), threading.Lock(), 0, 0

    def ask(number: int) -> int:
        nonlocal at_once, most
        if 8 <= number < 24:
            never.wait()
            return number
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        return number

    answers = answer_all(ask, range(88), threads=4, stall_s=0.3)
    never.set()
    assert answers[24:] == list(range(24, 88)) and most <= 6


def test_late_answers_count_while_others_come() -> None:
    """Identity: a thread that was replaced and comes back after all has answered."""
    others = threading.Event()

    def ask(number: int) -> int:
        if number == 0:
            others.wait(5)
        if number == 30:
            others.set()
        time.sleep(0.02)
        return number

    assert answer_all(ask, range(40), threads=2, stall_s=0.1) == list(range(40))


def test_description_is_bounded() -> None:
    """Golden values: counts by kind, then a bounded list."""
    left_out = [LeftOut(Path(f"{i}.mp4"), "too short" if i % 4 else "not readable", f"why {i}") for i in range(100)]
    lines = describe(left_out).splitlines()
    assert lines[0] == "75 too short, 25 not readable"
    assert lines[1] == "  0.mp4: why 0"
    assert len(lines) == LISTED_FILES + 2 and lines[-1] == f"  … and {100 - LISTED_FILES} more"
