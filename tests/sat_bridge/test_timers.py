"""Truths: spans add up, an open span counts and goes on, paused time does not count, nothing synchronises."""

from __future__ import annotations

import time
from unittest import mock

from cogvideox.sat_bridge.timers import Timers


def test_elapsed_adds_spans_and_keeps_a_running_timer_running() -> None:
    timer = Timers()("interval time")
    timer.start()
    time.sleep(0.02)
    first = timer.elapsed()
    assert first >= 0.02 and timer.running
    timer.stop()
    assert timer.elapsed() < first


def test_time_between_stop_and_start_does_not_count() -> None:
    timer = Timers()("interval time")
    timer.start()
    timer.stop()
    time.sleep(0.05)
    timer.start()
    assert timer.elapsed() < 0.04


def test_added_seconds_count_once() -> None:
    timer = Timers()("data loader")
    timer.add(1.5)
    assert timer.elapsed() == 1.5
    assert timer.elapsed() == 0.0


def test_no_device_synchronisation() -> None:
    with mock.patch("torch.cuda.synchronize") as synchronize:
        timers = Timers()
        for name in ("forward", "data loader"):
            timers(name).start()
            timers(name).stop()
        timers.log(["forward", "data loader"])
    synchronize.assert_not_called()
