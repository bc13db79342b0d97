"""Several processes that write to the cache's store, and one that is killed.

Truths checked: round trip (what one writes another reads), invariant (a kill at any moment leaves only whole entries).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from cogvideox.data import cache_shards
from cogvideox.data.cache_store import CacheStore
from tests.data.test_cache_store import assert_holds, content, key


def write(folder: Path, first: int, end: int, pipe: Connection) -> None:
    """Put what is missing, and tell of each entry."""
    store = CacheStore(folder, shard_bytes=40_000)
    for number in range(first, end):
        if key(number) not in store:
            store.put(key(number), content(number, 2400))
            pipe.send(number)
    store.close()


def writer(folder: Path, first: int, end: int) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=write, args=(folder, first, end, theirs))
    process.start()
    theirs.close()
    return process, ours


def told(pipe: Connection) -> list[int]:
    numbers = []
    try:
        while True:
            numbers.append(pipe.recv())
    except EOFError:
        return numbers


def test_processes_write_and_read_one_folder_at_once(tmp_path: Path) -> None:
    writers = [writer(tmp_path, 0, 120), writer(tmp_path, 60, 180)]
    store, seen = CacheStore(tmp_path), set()
    while any(process.is_alive() for process, _ in writers) or len(seen) < 180:
        store.refresh()
        for number in {number for number in range(180) if key(number) in store} - seen:
            assert_holds(store, number, 2400)
            seen.add(number)
        assert all(process.exitcode in (None, 0) for process, _ in writers)
    assert seen == set(range(180)) and not list(tmp_path.glob("*.partial"))


def test_a_kill_in_the_middle_of_writing_leaves_only_what_is_whole(tmp_path: Path) -> None:
    """At a random moment of the writing, again and again, until all is there: whole entries are not computed again."""
    chance, total, kills = random.Random(0), 200, 0
    while len(before := CacheStore(tmp_path).keys()) < total:
        process, pipe = writer(tmp_path, 0, total)
        assert process.pid is not None
        if kills < 30:
            time.sleep(0.002 + 0.02 * chance.random())
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        assert not {key(number) for number in told(pipe)} & before
        process.join()
        store = CacheStore(tmp_path)
        assert store.keys() >= before
        for each in store.keys():
            assert_holds(store, int(each, 16), 2400)


@pytest.mark.parametrize("step", range(8))
def test_a_kill_before_any_step_to_the_disk_leaves_whole_shards(tmp_path: Path, step: int) -> None:
    """Golden values: of two shards those whose index had got its name; four files and folders are synced for each."""

    def write_until_killed() -> None:
        steps, real = itertools.count(), cache_shards.sync
        cache_shards.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL) if next(steps) == step else real(path)
        store = CacheStore(tmp_path, shard_bytes=1)
        for number in range(2):
            store.put(key(number), content(number))

    process = multiprocessing.get_context("fork").Process(target=write_until_killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store = CacheStore(tmp_path)
    assert store.keys() == {key(number) for number in range((step + 1) // 4)}
    for each in store.keys():
        assert_holds(store, int(each, 16))
