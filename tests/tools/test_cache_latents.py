"""cache_latents.py on the quickstart's clips at tiny size.

Truths checked: golden values (entries there and computed), identity (one rank and two make the same entries),
invariant (after a kill only what was not whole is computed).
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from cogvideox.data import cache_shards
from cogvideox.data.cache_store import CacheStore
from tests.end_to_end.runs import write_config
from tests.end_to_end.warm_start import free_port, warm_context
from tools import cache_latents

CLIPS = CAPTIONS = 6
SUMMARY = re.compile(r"(\d+) entries there already, (\d+) computed(?:, (\d+) could not be)?; ")


def run_rank(arguments: list[str], variables: dict[str, str], log: Path, kill_at: int | None) -> None:
    """The tool in a process of its own. `kill_at`: each entry is written at once, as a shard of its own, and the
    process is killed where it would sync a file or folder for that time, counted from 0.
    """
    os.environ.update(variables)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    if kill_at is not None:
        steps, real = itertools.count(), cache_shards.sync
        cache_shards.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL) if next(steps) == kill_at else real(path)
        CacheStore.__init__.__defaults__ = (1, 0.0, None)  # type: ignore[misc]
    sys.exit(cache_latents.main(arguments))


def start(folder: Path, name: str, *flags: str, ranks: int = 1, kill_at: int | None = None) -> list[BaseProcess]:
    config = write_config(folder, {"args": {"num_workers": 0}})
    arguments = ["--base", str(config), *flags]
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    common["MASTER_PORT"] = str(free_port())
    processes = []
    for rank in range(ranks):
        variables = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        log = folder / f"{name}.log"
        process = warm_context().Process(target=run_rank, args=(arguments, variables, log, kill_at))
        process.start()
        processes.append(process)
    return processes


def run(folder: Path, name: str, *flags: str, ranks: int = 1) -> tuple[list[int | None], str]:
    processes = start(folder, name, *flags, ranks=ranks)
    for process in processes:
        process.join(240)
    return [process.exitcode for process in processes], (folder / f"{name}.log").read_text()


def counts(output: str) -> tuple[int, ...]:
    """Entries there already, computed, and not to be had, as the tool says once."""
    (found,) = SUMMARY.findall(output)
    return tuple(int(number or 0) for number in found)


@pytest.mark.slow
def test_one_rank_and_two_fill_it_alike_and_once(tmp_path: Path) -> None:
    flags = [("--cache", str(tmp_path / name)) for name in ("one", "two")]
    for flag, ranks in zip(flags, (1, 2), strict=True):
        statuses, output = run(tmp_path, f"cold{ranks}", *flag, ranks=ranks)
        assert statuses == [0] * ranks and counts(output) == (0, CLIPS + CAPTIONS, 0), output
        assert output.count("loading the T5 encoder") == 1
        statuses, output = run(tmp_path, f"warm{ranks}", *flag, ranks=ranks)
        assert statuses == [0] * ranks and counts(output) == (CLIPS + CAPTIONS, 0, 0), output
        assert "loading the T5 encoder" not in output
    one, two = CacheStore(tmp_path / "one"), CacheStore(tmp_path / "two")
    assert one.keys() == two.keys()
    for key in one.keys():
        first, second = one.get(key), two.get(key)
        assert first is not None and second is not None and first.keys() == second.keys()
        for name, tensor in first.items():
            assert torch.isfinite(tensor).all() and tensor.dtype == torch.float32
            torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_after_a_kill_only_what_was_not_whole_is_computed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    whole = 8  # all clips and two captions; four files and folders are synced for each, the last for the index's name
    (process,) = start(tmp_path, "killed", "--cache", str(cache), kill_at=4 * whole + 3 - 1)
    process.join(240)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "killed.log").read_text()
    assert len(CacheStore(cache).keys()) == whole
    statuses, output = run(tmp_path, "again", "--cache", str(cache))
    assert statuses == [0] and counts(output) == (whole, CLIPS + CAPTIONS - whole, 0), output


@pytest.mark.parametrize(
    ("flags", "message"),
    [((), "give its folder as `--cache DIR`"), (("--cache", "CONFIG"), "cannot make the cache")],
)
def test_mistakes(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    given = [str(tmp_path / "config.yaml") if flag == "CONFIG" else flag for flag in flags]
    statuses, output = run(tmp_path, "mistake", *given)
    assert statuses == [2] and message in output and "Traceback" not in output
