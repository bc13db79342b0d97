"""Lines of text over TCP between the ranks of a run, for `lifeline.py`."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

PATIENCE_S = 5.0  # with a rank that does not read
MOST_BYTES = 4096  # of a line
# A machine that loses its power ends no connection: after this much silence the kernel asks whether it is there.
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


@dataclass
class Peer:
    """The other end of a connection. `rank` is None until it has said who it is."""

    connection: socket.socket
    rank: int | None = None
    where: str = ""
    words: str = ""  # its last ones, if it failed
    has_left: bool = False
    unread: bytes = b""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, *words: object) -> None:
        """One line; to one that is gone, nothing."""
        line = " ".join(str(word).replace("\n", " ") for word in words).encode()[:MOST_BYTES]
        with suppress(OSError), self.lock:
            self.connection.sendall(line + b"\n")

    def hear(self) -> list[str] | None:
        """The lines that have come; None at the connection's end."""
        try:
            new = self.connection.recv(65536)
        except OSError:
            new = b""
        if not new:
            return None
        *lines, self.unread = (self.unread + new).split(b"\n")
        if len(self.unread) > MOST_BYTES:  # nobody of ours
            return None
        return [line.decode(errors="replace") for line in lines]


def listen() -> socket.socket:
    """A server on the loopback device where all ranks are on this machine, else on all of its devices."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def addresses_of(server: socket.socket) -> list[str]:
    """Where the other ranks may find `server`: where they found this rank's store, or by this machine's name."""
    host, port = server.getsockname()[:2]
    hosts = [host] if host == "127.0.0.1" else [os.environ.get("MASTER_ADDR", ""), socket.gethostname()]
    return [f"{each}:{port}" for each in hosts if each]


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel find out by itself where the other end's machine is gone."""
    connection.settimeout(PATIENCE_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:  # macOS has fewer of them
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def wait_for(sockets: list[socket.socket], until: float | None) -> set[int]:
    """Wait until some can be read, or until `until` of the monotonic clock; their descriptors."""
    poll = select.poll()
    for each in sockets:
        poll.register(each, select.POLLIN)
    return {
        descriptor for descriptor, _ in poll.poll(None if until is None else 1000 * max(0, until - time.monotonic()))
    }
