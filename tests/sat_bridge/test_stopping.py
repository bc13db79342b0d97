"""What signals do to a process and to its children. Truth: the exit statuses and lines of processes that get them."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from cogvideox.parallel import Group, Groups, current, install
from cogvideox.sat_bridge import stopping
from cogvideox.sat_bridge.stopping import SAME_S, Stops, farewell

ROOT = Path(__file__).resolve().parents[2]
EVERY = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]

# Waits in C code that no Python handler interrupts, as the store of a process group does.
STARTING = """
import ctypes, sys
from cogvideox.sat_bridge import stopping
with stopping.installed():
    print("ready", flush=True)
    libc = ctypes.CDLL(None)
    while True:
        libc.pause()
"""


def exits() -> tuple[Stops, list[int]]:
    statuses: list[int] = []
    return Stops(statuses.append), statuses


@pytest.mark.parametrize("number", EVERY)
def test_a_signal_before_training_ends_a_process_at_once_with_one_line(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STARTING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert errors == f"{number.name}: ended before training began\n"


def test_a_signal_in_training_is_noted_once_and_its_repeat_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    stops, statuses = exits()
    assert stops.agree() is None
    stops.hear(signal.SIGCHLD)
    stops.hear(signal.SIGTERM)
    now[0] += SAME_S / 2
    stops.hear(signal.SIGTERM)  # the launcher's copy of it
    assert not statuses and stops.agree() == "SIGTERM"
    now[0] += 2 * SAME_S
    stops.hear(signal.SIGTERM)  # a late one
    assert not statuses
    stops.hear(signal.SIGINT)
    assert statuses == [130] and stops.agree() == "SIGTERM"


class Others(Group):
    """A world where another rank has got `flags`."""

    flags = (0, 0, 0, 0)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.add_(torch.tensor(self.flags))


def test_another_ranks_signal_stops_this_one_and_rank_0s_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    before = current()
    try:
        for rank, reason in ((0, "--max-hours 2.0"), (1, None)):
            now[0] = 0.0
            stops, _ = exits()
            stops.max_hours = 2.0
            install(Groups(world=Group(rank, 2)))
            assert stops.agree() is None
            now[0] = 7199.0
            assert stops.agree() is None
            now[0] = 7200.0
            assert stops.agree() == reason
        monkeypatch.setattr(Others, "flags", (0, 0, 1, 0))
        install(Groups(host=Others(0, 2)))
        assert exits()[0].agree() == "SIGUSR1"
    finally:
        install(before)


def test_handlers_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(each) for each in EVERY]
    with stopping.installed() as stops:
        assert stopping.current() is stops
        stops.agree()
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while stops.agree() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stops.agree() == "SIGUSR1"
    assert [signal.getsignal(each) for each in EVERY] == before and signal.set_wakeup_fd(-1) == -1
    assert stopping.current() is not stops
    assert "signals" not in {thread.name for thread in threading.enumerate()}


def wait_for_signals() -> None:
    time.sleep(30)


def test_a_fork_ignores_the_parents_signals_and_ends_at_sigterm() -> None:
    with stopping.installed() as stops:
        stops.agree()
        child = multiprocessing.get_context("fork").Process(target=wait_for_signals)
        child.start()
        assert child.pid is not None
        for number in (signal.SIGINT, signal.SIGUSR1):
            os.kill(child.pid, number)
        child.join(0.3)
        assert child.is_alive()
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
        assert stops.agree() is None  # what its children get is not heard as its own


def test_children_that_hang_are_killed_at_the_end() -> None:
    with stopping.installed():
        child = multiprocessing.get_context("fork").Process(target=wait_for_signals)
        child.start()
    child.join(10)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("latest", "iteration", "said", "status"),
    [
        ("12", 12, "stopped at iteration 12 of 20 by SIGTERM, saved; to go on, give the same command with --resume", 0),
        ("30", 12, "by SIGTERM, saved; to go on, give the same command with --resume {}/12", 0),
        ("8", 12, "NOT saved, the newest checkpoint is of iteration 8", 1),
        (None, 0, "nothing is saved yet", 0),
        (None, 12, "nothing is saved yet", 1),
    ],
)
def test_the_last_line_says_what_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, latest: str | None, iteration: int, said: str, status: int
) -> None:
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    if "SIGTERM, saved" in said:
        (tmp_path / "12").mkdir()
        (tmp_path / "12/manifest.json").touch()

    class Ended:
        args = argparse.Namespace(iteration=iteration, train_iters=20)
        folder = tmp_path
        stopping = "SIGTERM"

    with caplog.at_level("INFO"):
        assert farewell(Ended()) == status
    assert said.format(tmp_path) in caplog.text and len(caplog.records) == 1


def test_a_loaders_worker_that_still_runs_at_the_end_is_no_error_of_the_run() -> None:
    with stopping.installed():
        batches = iter(torch.utils.data.DataLoader(range(1000), num_workers=1))
        next(batches)
        (worker,) = batches._workers  # type: ignore[attr-defined]
    assert not worker.is_alive()
    time.sleep(0.1)  # torch's handler would raise here
