"""Start real runs of `sample_video.py` at the smallest size, from a warm process as `warm_start` does for training."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from pathlib import Path

from tests.end_to_end.runs import environment

TIMEOUT_S = 240


def sample(log: Path, *words: str, ranks: int = 1, typed: str = "") -> tuple[int, str]:
    """The exit status and the output of `sample_video.main(words)` on `ranks` ranks; `typed` is their stdin."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.end_to_end.preloaded"])
    log.write_bytes(b"")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = environment() | {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if ranks > 1 else {}
    own = [env | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    processes = [context.Process(target=_rank, args=(list(words), each, str(log), typed)) for each in own]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
    codes = [process.exitcode for process in processes]
    return next((code for code in codes if code), 0), log.read_text(encoding="utf-8", errors="replace")


def _rank(words: list[str], env: dict[str, str], log: str, typed: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    reading, writing = os.pipe()
    os.write(writing, typed.encode())
    os.close(writing)
    os.dup2(reading, 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(env)
    import sample_video

    sys.exit(sample_video.main(words))
