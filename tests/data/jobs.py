"""Jobs for other processes; a module of its own, so that they start without importing what the tests need."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable


def work_or_not(job: str, alive: Callable[[], None]) -> list[str]:
    """Crash, hang, fail, take long but give signs of life, or answer with nothing, as `job` says."""
    if job == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "hang":
        time.sleep(60)
    if job == "fail":
        raise ValueError("no")
    for _ in range(20 if job == "long" else 0):
        time.sleep(0.2)
        alive()
    return []
