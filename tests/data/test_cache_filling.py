"""Ranks that fill a cache together. Truths: what fails on one is told on all (invariant), and soon; none goes on before
it sees what the others wrote. The ranks are threads here.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from cogvideox.data import cache_filling
from cogvideox.data.cache_filling import ROUND, in_rounds, see_all
from cogvideox.data.cache_store import CacheStore
from cogvideox.errors import UserError
from cogvideox.parallel import Group, Groups

KILLED = "DataLoader worker (pid 7) is killed by signal: Killed. "


@dataclass(frozen=True)
class ThreadGroup(Group):
    """Ranks that are threads."""

    box: list[Any] = field(default_factory=list)
    barrier: Any = None

    def gather_objects(self, value: Any) -> list[Any]:
        self.box[self.rank] = value
        self.barrier.wait(10)
        values = list(self.box)
        self.barrier.wait(10)
        return values


def on_ranks(monkeypatch: pytest.MonkeyPatch, count: int, function: Callable[[int], Any]) -> list[Any]:
    """What `function(rank)` gives or raises on each of `count` ranks."""
    box, barrier, place = [None] * count, threading.Barrier(count), threading.local()
    outcomes: list[Any] = [None] * count
    monkeypatch.setattr(cache_filling, "current", lambda: place.groups)

    def run(rank: int) -> None:
        place.groups = Groups(world=Group(rank, count), host=ThreadGroup(rank, count, box=box, barrier=barrier))
        try:
            outcomes[rank] = function(rank)
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    return outcomes


def test_ranks_with_unequal_parts_all_get_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (2 * ROUND, 2 * ROUND - 1, 0)
    made = [0, 0, 0]

    def work(rank: int) -> Generator[str | None, None, None]:
        for number in range(parts[rank]):
            made[rank] += 1
            yield f"{rank}" if number == ROUND else None

    found = on_ranks(monkeypatch, 3, lambda rank: in_rounds(work(rank), parts[0]))
    assert found == [["0"], ["1"], []] and made == list(parts)


@pytest.mark.parametrize(
    ("error", "on_its_rank", "on_others"),
    [
        (RuntimeError(KILLED), UserError, "a process that reads clips has died"),
        (UserError("no room"), UserError, "no room"),
        (ZeroDivisionError("by 0"), ZeroDivisionError, "rank 1 has failed: ZeroDivisionError: by 0"),
    ],
)
def test_what_fails_on_one_rank_ends_all_after_a_round(
    monkeypatch: pytest.MonkeyPatch, error: Exception, on_its_rank: type, on_others: str
) -> None:
    made, let_go = [0, 0], []

    def work(rank: int) -> Generator[str | None, None, None]:
        try:
            for number in range(10 * ROUND):
                if rank == 1 and number == 3:
                    raise error
                made[rank] += 1
                yield None
        finally:
            let_go.append(rank)

    zero, one = on_ranks(monkeypatch, 2, lambda rank: in_rounds(work(rank), 10 * ROUND))
    assert isinstance(zero, UserError) and on_others in str(zero) and type(one) is on_its_rank
    assert made == [ROUND, 3] and sorted(let_go) == [0, 1]


class _Deadly(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, place: int) -> int:
        if place == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return place


def test_a_worker_that_was_killed_is_told_of() -> None:
    """Reference: what torch raises of it."""

    def work() -> Generator[str | None, None, None]:
        for _ in DataLoader(_Deadly(), batch_size=None, num_workers=1):
            yield None

    with pytest.raises(UserError, match=r"has died \(DataLoader worker.*--num-workers"):
        in_rounds(work(), 4)


def clips_of(folder: Path, *keys: str) -> Any:
    """As far as is looked at here: a data set that wants `keys`, of which the last is a caption's."""
    records = [SimpleNamespace(record=SimpleNamespace(name=f"{key}.mp4")) for key in keys]
    wanted = [SimpleNamespace(key=key, index=place) for place, key in enumerate(keys[:-1])]
    return SimpleNamespace(
        store=CacheStore(folder),
        base=SimpleNamespace(clips=records),
        wanted=lambda: iter(wanted),
        captions=lambda: {keys[-1]: "a cat"},
    )


def put(folder: Path, *keys: str) -> None:
    store = CacheStore(folder)
    for key in keys:
        store.put(key, {"x": torch.zeros(1)})
    store.flush()


def test_what_shows_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry comes only when somebody has looked twice; what failed is not waited for."""
    put(tmp_path, "aa")
    clips = clips_of(tmp_path, "aa", "bb", "cc")
    refreshed, real = [], CacheStore.refresh

    def refresh(store: CacheStore) -> None:
        refreshed.append(store)
        if len(refreshed) == 3:
            put(tmp_path, "cc")
        real(store)

    monkeypatch.setattr(CacheStore, "refresh", refresh)
    monkeypatch.setattr("cogvideox.data.cache_store.LOOK_AGAIN_S", 0.0)
    see_all(clips, failed=["bb"], patience_s=30)
    assert len(refreshed) == 3 and "cc" in clips.store


def test_what_one_rank_never_sees_is_told_on_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "0", "aa", "bb", "cc")
    put(tmp_path / "1", "bb")
    clips = [clips_of(tmp_path / str(rank), "aa", "bb", "cc") for rank in range(2)]
    found = on_ranks(monkeypatch, 2, lambda rank: see_all(clips[rank], [], patience_s=0.05))
    for each in found:
        assert isinstance(each, UserError) and str(each).startswith("rank 1 (")
        for part in ("does not see 2 entries", f"{tmp_path / '1'}", "aa.mp4, the caption 'a cat'", "sees 1 files"):
            assert part in str(each), part
