"""That the end of a rank, and a standstill of all, are known everywhere. Truths: what each rank is told, and when."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch.distributed as dist

from cogvideox import progress
from cogvideox.sat_bridge import endings, lifeline, watchdog
from cogvideox.sat_bridge.connections import MOST_BYTES, Peer
from cogvideox.sat_bridge.lifeline import Lifeline, Loss
from cogvideox.sat_bridge.watchdog import Watchdog

SOON_S = 10
fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def all_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setattr(lifeline, "GRACE_S", 0.05)


class Ranks:
    """All ranks of a world in this process. `ended` are those that would have exited, with the loss that they saw."""

    def __init__(self, size: int) -> None:
        self.ended: dict[int, Loss] = {}
        self.store = dist.HashStore()
        self.lines = [Lifeline(rank, size, lambda loss, rank=rank: self._end(rank, loss)) for rank in range(size)]

    def _end(self, rank: int, loss: Loss) -> None:
        self.ended[rank] = loss

    def join(self) -> Ranks:
        threads = [threading.Thread(target=line.join, args=(self.store, SOON_S)) for line in self.lines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(line.is_complete for line in self.lines)
        return self

    def await_ends(self, *ranks: int) -> None:
        deadline = time.monotonic() + SOON_S
        while set(self.ended) < set(ranks) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(self.ended) == set(ranks)

    def close(self) -> None:
        for line in self.lines:
            line.leave()
            line.close()


@pytest.fixture
def world() -> Iterator[Ranks]:
    ranks = Ranks(3).join()
    yield ranks
    ranks.close()


def cut(line: Lifeline) -> None:
    """As the kernel does when a process dies."""
    for peer in line._peers:
        with suppress(OSError):  # the other end was first
            peer.connection.shutdown(socket.SHUT_RDWR)
    if line._server is not None:
        line._server.close()


def test_the_end_of_a_rank_is_passed_on_to_all(world: Ranks) -> None:
    world.lines[1]._is_leaving = True
    cut(world.lines[1])
    world.await_ends(0, 2)
    assert world.ended[0] == world.ended[2] and world.ended[0].rank == 1
    assert f"pid {os.getpid()} on {socket.gethostname()}" in world.ended[2].words


def test_the_end_of_rank_0_is_seen_by_all(world: Ranks) -> None:
    world.lines[0]._is_leaving = True
    cut(world.lines[0])
    world.await_ends(1, 2)
    assert {loss.rank for loss in world.ended.values()} == {0}


@pytest.mark.parametrize("rank", [0, 2])
def test_a_ranks_last_words_are_told_and_its_process_is_bounded(
    world: Ranks, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[int] = []
    monkeypatch.setattr(lifeline.os, "_exit", exits.append)
    world.lines[rank].fail("has failed (boom\nsecond line)", 7)
    world.await_ends(*({0, 1, 2} - {rank}))
    assert {(loss.rank, loss.words) for loss in world.ended.values()} == {(rank, "has failed (boom second line)")}
    time.sleep(0.1)
    assert exits == [7]


def test_ranks_that_have_left_are_not_missed(world: Ranks) -> None:
    for rank in (2, 0):
        world.lines[rank].leave()
        time.sleep(0.05)
        cut(world.lines[rank])
    time.sleep(0.2)
    assert not world.ended and world.lines[1].loss is None


def test_strangers_are_shown_out(world: Ranks) -> None:
    hub = world.lines[0]._server
    assert hub is not None
    for said in (b"hello 0123 1 me\n", b"lost 1 x\n", b"\xff\n", b""):
        with socket.create_connection(hub.getsockname()[:2], timeout=SOON_S) as stranger:
            stranger.sendall(said)
            if said:
                assert stranger.recv(10) == b""
    time.sleep(0.1)
    assert not world.ended and world.lines[0].loss is None


def test_a_world_of_one_and_one_that_cannot_meet_go_on(caplog: pytest.LogCaptureFixture) -> None:
    Lifeline().join(dist.HashStore())
    ranks = Ranks(2)
    ranks.store.set(lifeline.KEY, "token 127.0.0.1:1")
    ranks.lines[1].join(ranks.store, 0.2)
    assert "not all ranks are in touch" in caplog.text and not ranks.lines[1].is_complete and not ranks.ended
    ranks.close()


def live_and_be_killed(path: str) -> None:
    Lifeline(1, 2).join(dist.FileStore(path, 2))
    reader = fork.Process(target=time.sleep, args=(5,))  # which would keep its parent's connection open
    reader.start()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_missed_at_once_though_its_readers_live(tmp_path: Path) -> None:
    lost = threading.Event()
    process = fork.Process(target=live_and_be_killed, args=(str(tmp_path / "store"),))
    process.start()
    line = Lifeline(0, 2, lambda _: lost.set())
    line.join(dist.FileStore(str(tmp_path / "store"), 2), SOON_S)
    assert lost.wait(3) and line.loss is not None and line.loss.rank == 1
    process.join()
    line.close()


@pytest.mark.parametrize(
    ("error", "is_anothers"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), True),
        (dist.DistBackendError("NCCL communicator was aborted"), True),
        (ValueError("mine"), False),
    ],
)
def test_only_errors_of_communication_are_laid_to_another_rank(
    error: Exception, is_anothers: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Lifeline(0, 2)
    monkeypatch.setattr(line, "fail", lambda *_: None)
    monkeypatch.setattr(endings._process, "lifeline", line)
    line._lose(1, "is gone")
    assert endings.tell(error) == 1
    said = capsys.readouterr().err
    assert (said.count("rank 1 is gone"), "Traceback" in said or "mine" in said) == (is_anothers, not is_anothers)


class Clock:
    """Ticks of this process that are as old as is wanted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.age: float | None = None
        monkeypatch.setattr(watchdog, "last_tick", lambda: None if self.age is None else ("a forward", self.age))


def test_a_standstill_of_all_ranks_ends_all_with_their_stacks(
    world: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "LAST_WORD_S", 0.01)
    clock, exits = Clock(monkeypatch), []
    dogs = [Watchdog(60.0, tmp_path / "stacks", line, exits.append) for line in world.lines]
    dogs[0].look()  # nothing was done yet
    clock.age = 61.0
    for dog in dogs:
        dog.look()
    clock.age = 1.0
    dogs[1].look()  # gets on again
    clock.age = 75.0
    time.sleep(0.1)
    for dog in dogs:
        dog.look()
    time.sleep(0.1)
    assert not exits
    for dog in dogs:
        dog.look()
    deadline = time.monotonic() + SOON_S
    while len(exits) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    for dog in dogs:
        dog.stop()
    assert exits == [1, 1, 1]
    for rank in range(3):
        text = (tmp_path / "stacks" / f"rank-{rank}.txt").read_text()
        assert text.startswith(f"rank {rank} (pid") and "test_a_standstill_of_all_ranks" in text
    said = capfd.readouterr().err
    assert said.count("no rank has got on for 60 s") == 1 and "since a forward" in said


def test_a_tick_is_what_was_done_last() -> None:
    progress.forget()
    assert progress.last_tick() is None
    progress.tick("a forward")
    what, seconds = progress.last_tick() or ("", 99.0)
    assert what == "a forward" and 0 <= seconds < 5


def test_a_stranger_that_never_ends_its_line_is_hung_up_on() -> None:
    ours, strangers = socket.socketpair()
    with ours, strangers:
        peer = Peer(ours)
        strangers.sendall(b"hello\nx")
        assert peer.hear() == ["hello"]
        strangers.sendall(b"x" * 2 * MOST_BYTES)
        assert peer.hear() is None
