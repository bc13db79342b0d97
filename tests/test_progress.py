"""Whose work counts as a process's getting on. Truth: what was noted last."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread

import pytest

from cogvideox.progress import forget, last_tick, tick, waiting_for_others


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    forget()
    yield
    forget()


def what() -> str | None:
    last = last_tick()
    return last and last[0]


def test_another_threads_work_counts_only_where_the_main_thread_waits_for_it() -> None:
    def write() -> None:
        tick("bytes")

    def run() -> str | None:
        thread = Thread(target=write)
        thread.start()
        thread.join()
        return what()

    assert run() is None
    tick("a forward")
    assert run() == "a forward"
    with waiting_for_others():
        assert run() == "bytes"
    tick("a forward")
    assert run() == "a forward"
