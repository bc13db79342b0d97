"""Where a loader stands in its order: what it gives next, what it passes over, and how it is set back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Walk:
    """One step after the other (a batch of every rank each), but for those in `quarantined`; may be set back.

    Steps are counted as the run counts them. `advance` is for all ranks, also those that read no data themselves; what
    `over` gives is for those that do. Both pass over the same steps.
    """

    def __init__(self) -> None:
        self.quarantined: set[int] = set()
        self.next = 0
        self._begun_at = self._turn = 0

    def set(self, step: int) -> None:
        """Go on with `step`."""
        self.next = self._begun_at = step
        self._turn += 1

    def advance(self) -> tuple[int, int]:
        """The step of the batch that comes next, and how many in quarantine are passed over before it."""
        passed = 0
        while self.next in self.quarantined:
            self.next += 1
            passed += 1
        self.next += 1
        return self.next - 1, passed

    def over(self, batches: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        """Those of `batches()`, which begin where the walk does; asked for anew whenever it was set back."""
        while True:
            turn, step = self._turn, self._begun_at
            for batch in batches():
                if step not in self.quarantined:
                    yield batch
                    if turn != self._turn:
                        break
                step += 1
            else:
                return
