"""Work in other processes that may crash or hang: each job gets an answer, or a reason why there is none. And which
signals concern processes that read: those of their parent.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")

READY, ALIVE, DONE, FAILED = "ready", "alive", "done", "failed"
POLL_S = 0.5
SIGN_OF_LIFE_S = 0.5


@dataclass(frozen=True)
class Lost:
    """There is no answer: the process `crashed`, `hung` or failed with an error of ours. `reason` says how."""

    kind: str
    reason: str


def in_processes(
    work: Callable[[Job, Callable[[], None]], Answer],
    jobs: Sequence[Job],
    workers: int,
    stall_s: float,
) -> Iterator[tuple[int, Answer | Lost]]:
    """`work(job, alive)` for every job: (its place, its answer), as they come.

    Each process has one job at a time and is replaced where it crashes, or where neither an answer nor a call of
    `alive` has come for `stall_s` seconds. `work` is a function of a module, or a partial of one. Raises RuntimeError
    where no process starts.
    """
    # Not "fork": the parent has threads. Not "forkserver": there is one for all of a program, with its own preloads.
    context = multiprocessing.get_context("spawn")
    waiting = deque(range(len(jobs)))
    crew: list[_Worker[Job, Answer]] = []
    try:
        for _ in range(len(jobs)):
            answered = None
            while answered is None:
                busy = sum(worker.place is not None for worker in crew)
                crew += [_Worker(context, work) for _ in range(min(workers, len(waiting) + busy) - len(crew))]
                answered = _next_answer(crew, waiting, jobs, stall_s)
            yield answered
    finally:
        for worker in crew:
            worker.end()


def _next_answer(
    crew: list[_Worker[Job, Answer]], waiting: deque[int], jobs: Sequence[Job], stall_s: float
) -> tuple[int, Answer | Lost] | None:
    """Hand out jobs and listen for a moment; workers that are of no more use leave the crew."""
    wait([worker.connection for worker in crew], POLL_S)
    for worker in list(crew):
        answer = worker.hear()
        if answer is None:
            answer = worker.overdue(stall_s)
        if worker.is_dead or (isinstance(answer, Lost) and answer.kind == "hung"):
            crew.remove(worker)
            worker.end()
        if answer is not None:
            place, worker.place = worker.place, None
            assert place is not None, "only a busy worker answers"
            return place, answer
        if worker.is_idle and waiting and worker.give(waiting[0], jobs):
            waiting.popleft()
    return None


class _Worker(Generic[Job, Answer]):
    """One process, seen from the parent. `place` is that of the job that it works on."""

    def __init__(self, context: Any, work: Callable[[Job, Callable[[], None]], Answer]) -> None:
        self.connection: Connection
        self.connection, other_end = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_serve, args=(work, other_end), daemon=True)
        self._process.start()
        other_end.close()
        self._is_ready = False
        self._heard_at = time.monotonic()
        self.place: int | None = None
        self.is_dead = False

    @property
    def is_idle(self) -> bool:
        return self._is_ready and self.place is None and not self.is_dead

    def give(self, place: int, jobs: Sequence[Job]) -> bool:
        """Whether it took the job; not so where it died meanwhile, which `hear` finds out."""
        try:
            self.connection.send(jobs[place])
        except OSError:
            return False
        self.place, self._heard_at = place, time.monotonic()
        return True

    def hear(self) -> Answer | Lost | None:
        """What the process has said since it was last asked, as far as it is an answer."""
        try:
            while self.connection.poll():
                kind, content = self.connection.recv()
                self._heard_at = time.monotonic()
                self._is_ready = True
                if kind == DONE:
                    return content
                if kind == FAILED:
                    return Lost(FAILED, content)
        except (EOFError, OSError):
            self._process.join(5.0)
            if not self._is_ready:
                raise RuntimeError(f"a worker process does not start (exit code {self._process.exitcode})") from None
            self.is_dead = True
            if self.place is not None:
                return Lost("crashed", f"ended the process that read it ({_ending(self._process.exitcode)})")
        return None

    def overdue(self, stall_s: float) -> Lost | None:
        """A worker that is at work and has given no sign of life for `stall_s` seconds."""
        if self.place is None or time.monotonic() - self._heard_at < stall_s:
            return None
        return Lost("hung", f"gave no answer within {stall_s:g} s")

    def end(self) -> None:
        """Kill the process; one that the system cannot end is left behind."""
        self._process.kill()
        self._process.join(2.0)
        self.connection.close()


def _ending(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"


def _serve(work: Callable[[Job, Callable[[], None]], Answer], connection: Connection) -> None:
    """A worker's life: jobs in, answers out, until the parent closes the connection or kills it."""
    for each in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(each, signal.SIG_IGN)  # the parent ends it
    last = time.monotonic()

    def alive() -> None:
        nonlocal last
        if time.monotonic() - last >= SIGN_OF_LIFE_S:
            last = time.monotonic()
            connection.send((ALIVE, None))

    connection.send((READY, None))
    try:
        while True:
            job = connection.recv()
            try:
                answer: tuple[str, Any] = (DONE, work(job, alive))
            except Exception as error:
                answer = (FAILED, f"{type(error).__name__}: {error}")
            connection.send(answer)
    except (EOFError, OSError):  # the parent is gone
        return


PR_SET_PDEATHSIG = 1  # of Linux's prctl


def serve_parent_alone(_worker: int = 0) -> None:
    """For `DataLoader(worker_init_fn=…)`: only the parent ends this process, by SIGTERM, or by its own end.

    A launcher or a batch system that stops a run sends SIGTERM to all its processes, and the run saves before it ends:
    it needs its readers until then. And where the parent is killed, one that hangs would be left.
    """
    for each in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(each, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the thread has this mask too, and waits for it
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent,), name="signals", daemon=True).start()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
