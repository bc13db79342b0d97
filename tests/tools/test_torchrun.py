"""What tools/torchrun.py makes of the ends of its ranks. Truths: golden statuses, signals and times passed on."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from tools.torchrun import FAILED_RANK_TIMEOUT_S, as_status, first_status, patient


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        ([-15, -9], 137),  # one was killed, the other told to stop
        ([1, -9], 137),  # or has seen it by itself
        ([1, 2], 2),  # a mistake that one rank has explained
        ([-15, 1], 1),
        ([-15, -15], 143),
    ],
)
def test_the_status_is_that_of_the_rank_that_ended_the_others(codes: list[int], status: int) -> None:
    assert as_status(first_status(codes)) == as_status(first_status(codes[::-1])) == status


class Signalled(Exception):
    """Stands for torchrun's, which its handler raises wherever it is."""

    def __init__(self, sigval: signal.Signals) -> None:
        self.sigval = sigval


def test_ranks_have_time_after_a_signal_and_little_after_a_failure() -> None:
    calls: list[tuple[Any, float]] = []
    codes: list[int] = []
    further = [signal.SIGINT, signal.SIGTERM]

    def close(_context: Any, death_sig: Any, timeout: float) -> None:
        calls.append((death_sig, timeout))
        if death_sig is not None and further:
            raise Signalled(further.pop(0))

    handlers = {
        rank: SimpleNamespace(proc=SimpleNamespace(poll=lambda code=code: code)) for rank, code in ((0, 0), (1, -9))
    }
    context = SimpleNamespace(subprocess_handlers=handlers)
    close_ranks = patient(close, Signalled, codes)
    close_ranks(context)
    close_ranks(context, signal.SIGUSR1, 600)
    every = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)
    assert calls == [(None, FAILED_RANK_TIMEOUT_S), *((each, 600) for each in every)]
    assert codes == [0, -9]
