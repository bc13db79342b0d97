"""A group of ranks that are threads of one process, for what runs on several ranks without a tensor."""

from __future__ import annotations

import threading
from typing import Any

from cogvideox.parallel import Group


class Together:
    """What the ranks of a group in threads tell each other."""

    def __init__(self, size: int) -> None:
        self.barrier, self.values = threading.Barrier(size, timeout=20), [None] * size

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.barrier.wait()
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


class Threads(Group):
    """A group whose ranks are threads."""

    def __init__(self, rank: int, together: Together) -> None:
        super().__init__(rank, len(together.values))
        object.__setattr__(self, "together", together)

    def gather_objects(self, value: Any) -> list[Any]:
        return self.together.gather(self.rank, value)  # type: ignore[attr-defined]

    def broadcast_object(self, value: Any, src: int = 0) -> Any:
        return self.gather_objects(value)[src]
