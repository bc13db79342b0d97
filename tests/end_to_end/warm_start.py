"""Runs of `train_video.main` in processes forked from one that has everything imported: start-up costs once.

Each rank is a process of its own with its own environment, output and exit status, as under a launcher; only the
imports are shared. What depends on the launcher or on a fresh interpreter is tested with `runs.run`.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

GRACE_S = 20  # how long the other ranks may take to end once one has failed, as they would under torchrun
STOPPED = {-15, -9}
TORCHRUN, SLURM = ("RANK", "LOCAL_RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")

# Stands for `tools/verify_checkpoint.py`: its arguments to its exit status and what it prints.
Verifier = Callable[[list[str]], tuple[int, str]]


@functools.cache
def warm_context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.end_to_end.preloaded"])
    return context


def run_warm(
    arguments: list[str],
    env: dict[str, str],
    ranks: int,
    log: Path,
    timeout_s: float,
    verifier: Verifier | None = None,
    names: tuple[str, str, str] = TORCHRUN,
) -> tuple[int, str]:
    """The exit status and the output, in order, of `train_video.main(arguments)` on `ranks` ranks.

    `verifier` answers here what `--verify-save` asks of a new process otherwise. `names` are those of the variables
    with a rank's number, its number on this machine, and how many there are.

    Raises:
        TimeoutError: after `timeout_s`; the ranks are killed.
    """
    log.write_bytes(b"")
    asked, asks = multiprocessing.Pipe()
    processes = start_warm(arguments, env, ranks, log, asks if verifier else None, names)
    try:
        _wait(processes, timeout_s, asked, verifier)
    finally:
        output = log.read_text(encoding="utf-8", errors="replace")
    codes = [process.exitcode for process in processes]
    failures = [code for code in codes if code]
    return next((code for code in failures if code not in STOPPED), next(iter(failures), 0)), output


def start_warm(
    arguments: list[str],
    env: dict[str, str],
    ranks: int,
    log: Path,
    asks: Connection | None = None,
    names: tuple[str, str, str] = TORCHRUN,
) -> list[BaseProcess]:
    """The processes of `train_video.main(arguments)` on `ranks` ranks, which append to `log`."""
    of_rank, on_machine, of_all = names
    env = env | {of_all: str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    if ranks > 1 and names == TORCHRUN:
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(ranks):
        own = env | {of_rank: str(rank), on_machine: str(rank)}
        process = warm_context().Process(target=_rank, args=(arguments, own, str(log), asks))
        process.start()
        processes.append(process)
    return processes


def _wait(processes: list[BaseProcess], timeout_s: float, asked: Connection, verifier: Verifier | None) -> None:
    end, failed = time.monotonic() + timeout_s, False
    while any(process.is_alive() for process in processes):
        for process in processes:
            process.join(0.05)
        if verifier is not None and asked.poll():
            asked.send(verifier(asked.recv()))
        if not failed and any(process.exitcode for process in processes):
            failed, end = True, min(end, time.monotonic() + GRACE_S)
        if time.monotonic() > end:
            for process in processes:
                process.kill()
                process.join()
            if not failed:
                raise TimeoutError(f"the run took more than {timeout_s} s")


def _rank(arguments: list[str], env: dict[str, str], log: str, asks: Connection | None) -> None:
    assert "deepspeed" in sys.modules, "the fork server has not loaded tests/end_to_end/preloaded.py"
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["train_video.py", *arguments]
    import train_video
    from cogvideox.sat_bridge import verification

    if asks is not None:
        verification.ask = functools.partial(_answered, asks)
    sys.exit(train_video.main(arguments))


def _answered(asks: Connection, question: list[str]) -> tuple[int, str]:
    asks.send(question)
    status, said = asks.recv()
    return status, said


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
