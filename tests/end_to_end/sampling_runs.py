"""Start real runs of `sample_video.py` at the smallest size, from a warm process as `warm_start` does for training."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from threading import Thread

from tests.end_to_end.runs import environment
from tests.end_to_end.warm_start import free_port, warm_context

TIMEOUT_S = 240


def sample(
    log: Path, *words: str, ranks: int = 1, typed: str = "", after_s: float = 0, patience_s: float | None = None
) -> tuple[int, str]:
    """The exit status (of the first that is not 0) and the output of `sample_video.main(words)` on `ranks` ranks.

    `typed` is their stdin, `after_s` after the first question; `patience_s` is how long a collective may take.
    """
    codes, output = sample_on_ranks(log, words, ranks, typed, after_s, patience_s)
    return next((code for code in codes if code), 0), output


def sample_on_ranks(
    log: Path, words: Sequence[str], ranks: int, typed: str = "", after_s: float = 0, patience_s: float | None = None
) -> tuple[list[int | None], str]:
    """As `sample`, with every rank's status."""
    log.write_bytes(b"")
    env = environment() | {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if ranks > 1 else {}
    own = [env | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    processes = [
        warm_context().Process(target=_rank, args=(list(words), each, str(log), typed, after_s, patience_s))
        for each in own
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes], log.read_text(encoding="utf-8", errors="replace")


def _rank(
    words: list[str], env: dict[str, str], log: str, typed: str, after_s: float, patience_s: float | None
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    reading, writing = os.pipe()
    Thread(target=_type, args=(writing, typed, Path(log), after_s), daemon=True).start()
    os.dup2(reading, 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(env)
    import sample_video
    from cogvideox.sat_bridge import distributed

    if patience_s is not None:
        distributed.PATIENCE = timedelta(seconds=patience_s)
    sys.exit(sample_video.main(words))


def _type(writing: int, typed: str, log: Path, after_s: float) -> None:
    while after_s and "an empty line ends" not in log.read_text(encoding="utf-8", errors="replace"):
        time.sleep(0.1)
    time.sleep(after_s)
    os.write(writing, typed.encode())
    os.close(writing)
