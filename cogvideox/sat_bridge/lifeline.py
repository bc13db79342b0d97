"""A rank that ends brings the others down within seconds, also where they wait for it in a collective without end.

Every rank keeps a TCP connection to rank 0, whose end the kernel tells when a process dies, however it dies; one that
is only busy counts as alive, for nobody has to send anything. Rank 0 passes on which rank is lost. The others give
their main threads a moment to fail by themselves, say whose end it is that ends them, and exit.

What is said is lines of text: `hello TOKEN RANK WHERE`, `bye`, `failed WORDS`, `stale SECONDS WHAT`, `fresh` to rank 0;
`lost RANK WORDS`, `stall WORDS`, `bye` from it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch.distributed as dist

from cogvideox.errors import shown
from cogvideox.sat_bridge.connections import Peer, addresses_of, keep_alive, listen, wait_for

logger = logging.getLogger(__name__)

KEY = "lifeline"
JOIN_S = 60.0
GRACE_S = 5.0  # for a rank's own error, which says more than that another is lost


@dataclass(frozen=True)
class Loss:
    """A rank that has ended before the run did, and what is known of its end."""

    rank: int
    words: str


class Lifeline:
    """This rank's end of it. Between `join` and `leave`, or `fail`, the loss of another rank ends this process."""

    def __init__(self, rank: int = 0, size: int = 1, end: Callable[[Loss], None] | None = None) -> None:
        self.rank, self.size = rank, size
        self.on_stall: Callable[[str], None] = lambda _: None
        self.loss: Loss | None = None
        self._end = end or self._say_and_exit
        self._noted = threading.Event()
        self._complete = threading.Event()
        self._is_leaving = False
        self._peers: list[Peer] = []
        self._stale: dict[int, tuple[float, str]] = {}
        self._stood_still = False  # all of them, by what each has said once
        self._lock = threading.Lock()  # of these two, which the watchdog's thread and the lifeline's own change
        self._server: socket.socket | None = None
        self._token = ""

    @property
    def is_complete(self) -> bool:
        """Whether all ranks are connected; then none that is lost goes unseen."""
        return self.size == 1 or self._complete.is_set()

    def join(self, store: dist.Store, join_s: float = JOIN_S) -> None:
        """Connect with the others; every rank calls this. Where it cannot be, a warning: the run goes on without."""
        if self.size == 1:
            return
        _close_in_forks(self)
        if self.rank == 0:
            self._server = listen()
            self._token = secrets.token_hex(16)
            store.set(KEY, f"{self._token} {' '.join(addresses_of(self._server))}")
        else:
            self._token, *addresses = store.get(KEY).decode().split()
            self._connect(addresses, join_s)
        threading.Thread(target=self._serve, name="lifeline", daemon=True).start()
        if not self._complete.wait(join_s):
            logger.warning("rank %d: not all ranks are in touch: if one dies, others may wait for it", self.rank)

    def leave(self) -> None:
        """This rank has done everything, and its end is none to worry about."""
        self._is_leaving = True
        self._broadcast("bye")

    def fail(self, words: str, status: int = 1) -> None:
        """Tell the others that this rank ends, and why ("has failed").

        In a moment it has, with `status`, whatever holds up its main thread.
        """
        if self.size == 1 or self._is_leaving:
            return
        self._is_leaving = True
        self._broadcast(*("lost", 0) if self.rank == 0 else ("failed",), shown(words))
        timer = threading.Timer(GRACE_S, os._exit, (status,))
        timer.daemon = True
        timer.start()

    def wait_for_loss(self, timeout_s: float = GRACE_S) -> Loss | None:
        """The rank that is lost, if one is or comes to be within `timeout_s`."""
        self._noted.wait(timeout_s)
        return self.loss

    def stale(self, seconds: float, what: str) -> None:
        """This rank has got nowhere for `seconds`, since `what`; where that is so of all, `on_stall` is called on all.

        A rank that waits for another that gets on is in order. To be said again: all must have said it twice, since
        once it may cross with a `fresh`, which takes it back.
        """
        if not self.is_complete:
            self.on_stall(f"rank {self.rank} for {seconds:.0f} s, since {what}")
        elif self.rank == 0:
            self._note_stale(0, seconds, what)
        else:
            self._broadcast("stale", f"{seconds:.0f}", what)

    def fresh(self) -> None:
        """This rank gets on again."""
        self._note_fresh(self.rank)
        if self.rank != 0:
            self._broadcast("fresh")

    def close(self) -> None:
        """The connections, or in a fork its copies of them, which would outlive this process."""
        for each in [*(peer.connection for peer in self._peers), *filter(None, [self._server])]:
            each.close()

    def describe(self, loss: Loss) -> str:
        """What to say where another rank's end ends this one."""
        end = "The other ranks end with it; --resume auto goes on from the newest checkpoint, if one is saved"
        return f"rank {loss.rank} {loss.words}. {end}"

    def speaks(self, loss: Loss) -> bool:
        """Whether this rank says so for its machine: the first one on it that is left."""
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        return local == 0 or (local == 1 and loss.rank == self.rank - 1)

    def _say_and_exit(self, loss: Loss) -> None:
        if self.speaks(loss):
            os.write(2, f"{self.describe(loss)}\n".encode())
        os._exit(1)

    def _connect(self, addresses: list[str], join_s: float) -> None:
        for address in addresses:
            host, _, port = address.rpartition(":")
            with suppress(OSError):
                peer = Peer(socket.create_connection((host, int(port)), join_s / len(addresses)), rank=0, where=host)
                keep_alive(peer.connection)
                peer.say("hello", self._token, self.rank, f"pid {os.getpid()} on {socket.gethostname()}")
                self._peers.append(peer)
                return

    def _serve(self) -> None:
        ends_at: float | None = None
        while not self._is_leaving and (ends_at is None or time.monotonic() < ends_at):
            readable = wait_for([*(peer.connection for peer in self._peers), *filter(None, [self._server])], ends_at)
            if self._is_leaving:
                return
            if self._server is not None and self._server.fileno() in readable:
                self._accept(self._server)
            for peer in [each for each in self._peers if each.connection.fileno() in readable]:
                self._take(peer, peer.hear())
            if self.loss is not None and ends_at is None:
                ends_at = time.monotonic() + GRACE_S
        if self.loss is not None and not self._is_leaving:
            self._end(self.loss)

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = server.accept()
            keep_alive(connection)
            self._peers.append(Peer(connection))

    def _take(self, peer: Peer, lines: list[str] | None) -> None:
        is_known = all([self._obey(peer, line) for line in lines or []])
        if is_known and lines is not None:
            return
        self._peers.remove(peer)
        peer.connection.close()
        if is_known and peer.rank is not None and not peer.has_left:
            gone = f"({peer.where}) is gone without a word, killed perhaps for want of memory"
            self._lose(peer.rank, peer.words or gone)

    def _obey(self, peer: Peer, line: str) -> bool:
        """Do what a line says; False for a stranger's."""
        word, _, rest = line.partition(" ")
        if peer.rank is None:
            return self._greet(peer, word, rest)
        if word == "complete":
            self._complete.set()
        elif word == "bye":
            peer.has_left = True
        elif word == "failed":
            peer.words = rest
            self._lose(peer.rank, rest)
        elif word == "lost":
            rank, _, words = rest.partition(" ")
            self._lose(int(rank), words)
        elif word == "stale":
            seconds, _, what = rest.partition(" ")
            self._note_stale(peer.rank, float(seconds), what)
        elif word == "fresh":
            self._note_fresh(peer.rank)
        elif word == "stall":
            self.on_stall(rest)
        return True

    def _greet(self, peer: Peer, word: str, rest: str) -> bool:
        token, rank, where = (*rest.split(" ", 2), "", "", "")[:3]
        if word != "hello" or not secrets.compare_digest(token.encode(), self._token.encode()):
            return False
        peer.rank, peer.where = int(rank), where
        if sum(each.rank is not None for each in self._peers) == self.size - 1:
            self._broadcast("complete")
            self._complete.set()
        return True

    def _lose(self, rank: int, words: str) -> None:
        if self.loss is None:
            self.loss = Loss(rank, words)
            if self.rank == 0:
                self._broadcast("lost", rank, words)
            self._noted.set()

    def _note_stale(self, rank: int, seconds: float, what: str) -> None:
        with self._lock:
            self._stale[rank] = (seconds, what)
            if len(self._stale) < self.size:
                return
            longest, (waited, since) = max(self._stale.items(), key=lambda each: each[1][0])
            is_second, self._stood_still = self._stood_still, True
            self._stale.clear()
        if is_second:
            words = f"rank {longest} for {waited:.0f} s, since {since}"
            self._broadcast("stall", words)
            self.on_stall(words)

    def _note_fresh(self, rank: int) -> None:
        with self._lock:
            self._stood_still = False
            self._stale.pop(rank, None)

    def _broadcast(self, *words: object) -> None:
        for peer in list(self._peers):
            if peer.rank is not None:
                peer.say(*words)


def _close_in_forks(line: Lifeline) -> None:
    """A connection ends when all its copies are closed: that of a reader would hide the end of its parent."""
    reference = weakref.ref(line)

    def close() -> None:
        if (copy := reference()) is not None:
            copy.close()

    os.register_at_fork(after_in_child=close)
