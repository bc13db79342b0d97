"""Signals and limits that end a run before its last iteration: all ranks stop after the same step, save, and exit 0.

A signal is heard by a thread, whatever C++ code the main one is in. Once training has begun the first one is noted and
`Stops.agree`, which all ranks call before every step, says so on all of them; before that, and the second time, it ends
the process at once. Imported before torch: `OMP_WAIT_POLICY` must be set first.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A launcher passes on what the terminal or Slurm sent to all processes already, as the same signal or another. On a
# busy machine that takes it a while; but a key that is pressed again is meant.
SAME_S, PASSED_ON_S = 1.0, 5.0
END = 0  # no signal has this number


class Stopped(Exception):
    """All ranks have agreed to stop; raised where a step would begin, and caught around the loop."""


class EarlyEnd(Protocol):
    """What `farewell` wants to know of a run: why it stopped early, if it did, and where it is."""

    args: argparse.Namespace
    folder: Path
    stopping: str | None


class Stops:
    """Why this run is to end early, as far as this process knows; its clock starts here.

    `at_once` is called before the process ends without saving.
    """

    def __init__(self, exit_now: Callable[[int], None] = os._exit) -> None:
        self.max_hours: float | None = None
        self.at_once: list[Callable[[], object]] = []
        self._exit_now = exit_now
        self._began = time.monotonic()
        self._is_training = False
        self._signal: signal.Signals | None = None
        self._signalled_at = 0.0
        self._reason: str | None = None

    def agree(self, *, has_begun: bool = True) -> str | None:
        """Why all ranks stop here, or None to go on; every rank must call this.

        Over the host's group: no wait for the GPU, and none that is too long for its collectives, as where rank 0
        samples for minutes. From the first call on, signals wait for the next one. `--max-hours` counts once this
        process `has_begun` to train: a run that is started again and again gets on by a step each time.
        """
        import torch

        from cogvideox.parallel import current

        self._is_training = True
        if self._reason is None:
            groups = current()
            late = has_begun and groups.world.rank == 0 and self._hours() >= (self.max_hours or float("inf"))
            flags = groups.host.sum(torch.tensor([*(self._signal == each for each in SIGNALS), late]).long())
            reasons = [*(each.name for each in SIGNALS), f"--max-hours {self.max_hours}"]
            self._reason = next((reason for reason, flag in zip(reasons, flags.tolist(), strict=True) if flag), None)
        return self._reason

    def hear(self, number: int) -> None:
        """What a signal does: ends the process at once, or is noted for `agree`."""
        if number not in SIGNALS:
            return
        limit = PASSED_ON_S if number == self._signal != signal.SIGINT else SAME_S
        if self._signal is not None and time.monotonic() - self._signalled_at < limit:
            return
        if self._signal is None and self._is_training:
            self._signal, self._signalled_at = signal.Signals(number), time.monotonic()
            _say(number, "this step is finished, then saved; a second signal ends at once, without saving")
            return
        again = "a second signal: ended at once, without saving" if self._signal else "ended before training began"
        _say(number, again)
        for function in self.at_once:
            function()
        self._exit_now(128 + number)

    def _hours(self) -> float:
        return (time.monotonic() - self._began) / 3600


def _say(number: int, text: str) -> None:
    """On rank 0's stderr."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):  # the terminal may be what has gone
            os.write(2, f"{signal.Signals(number).name}: {text}\n".encode())


class _Listening:
    """The thread that hears signals, and what must be put back after it. Only the main thread may make one."""

    def __init__(self, stops: Stops) -> None:
        self.stops = stops
        self.ours, self.systems = socket.socketpair()
        self.systems.setblocking(False)
        self._handlers = {each: signal.signal(each, lambda *_: None) for each in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self.systems.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while (heard := self.ours.recv(64)) and END not in heard:
            for number in heard:
                self.stops.hear(number)

    def end(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for each, handler in self._handlers.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)  # None: not one of Python's
        self.systems.send(bytes([END]))
        self._thread.join()
        self.close()

    def close(self) -> None:
        self.ours.close()
        self.systems.close()


class _Process:
    """What of this module belongs to the process: who listens, and the hooks of its forks."""

    def __init__(self) -> None:
        self.stops = Stops()
        self.listening: _Listening | None = None
        self._has_hooks = False
        self._mask: set[signal.Signals] = set()

    def hook_forks(self) -> None:
        """A fork has our handlers and our socket, through which its signals would be heard as the parent's."""
        if not self._has_hooks:
            self._has_hooks = True
            os.register_at_fork(before=self._hold, after_in_parent=self._let_go, after_in_child=self._begin_child)

    def _hold(self) -> None:
        if self.listening is not None:
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # type: ignore[assignment]

    def _let_go(self) -> None:
        if self.listening is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _begin_child(self) -> None:
        if self.listening is not None:
            signal.set_wakeup_fd(-1)
            self.listening.close()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for each in (signal.SIGINT, signal.SIGUSR1):
                signal.signal(each, signal.SIG_IGN)  # the parent's business
            self._let_go()
            self.listening, self.stops = None, Stops()


_process = _Process()


def current() -> Stops:
    """The stops that are installed; else ones that hear no signal."""
    return _process.stops


@contextmanager
def installed() -> Iterator[Stops]:
    """Hear SIGTERM, SIGINT and SIGUSR1 inside the block; to be entered in the main thread. Puts back what was there.

    Processes that were started in it and still run at its end have hung: they are killed.
    """
    others = set(multiprocessing.active_children())
    before, _process.stops = _process.stops, Stops()
    _process.hook_forks()
    _process.listening = _Listening(_process.stops)
    try:
        yield _process.stops
    finally:
        _kill(set(multiprocessing.active_children()) - others)
        _process.listening.end()
        _process.listening, _process.stops = None, before


def _kill(children: set[Any]) -> None:
    """And see them gone without torch's handler, to which the end of a loader's worker is an error of the run."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in children:
        child.kill()
        child.join()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)


def ignore_signals() -> None:
    """For a process that has done everything and only has to exit."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _what_is_saved(run: Path, iteration: int) -> tuple[str | None, bool]:
    """What `latest` names, and whether `iteration` is saved: where a run went on from before `latest` and came to no
    step, it is that without being the latest.
    """
    from cogvideox.checkpoint.choosing import LATEST, MANIFEST
    from cogvideox.checkpoint.pointers import latest_text

    try:
        named = latest_text(run / LATEST) if (run / LATEST).is_file() else None
        return named, (run / str(iteration) / MANIFEST).is_file()
    except OSError:
        return None, False


def farewell(run: EarlyEnd) -> int:
    """On rank 0, say in one line why a run stopped early and how it goes on; 0, or 1 if its last step is not saved."""
    from cogvideox.parallel import current as current_groups

    if run.stopping is None:
        return 0
    iteration = run.args.iteration
    # One answer for all.
    latest, is_saved = current_groups().host.on_first(partial(_what_is_saved, run.folder, iteration))
    if current_groups().world.rank == 0:
        line = f"stopped at iteration {iteration} of {run.args.train_iters} by {run.stopping}"
        if latest is None:
            logger.info("%s; nothing is saved yet: start again", line)
        else:
            end = "saved" if is_saved else f"NOT saved, the newest checkpoint is of iteration {latest}"
            goes_on = run.folder / str(iteration) if is_saved and latest != str(iteration) else run.folder
            again = f"give the same command with --resume {shlex.quote(str(goes_on))}"
            logger.info("%s, %s; to go on, %s", line, end, again)
    return 0 if is_saved or iteration == 0 else 1
