"""The order of a stream of shards: a function of (seed, epoch), near to the shards' own, whatever ranks there are.

One logical stream: an epoch has the shards permuted, one after the other, and then its samples permuted within windows
of so many (the shuffle buffer). A step takes the next samples of it, as many as all ranks need together. What was given
of it is one number, so that a run goes on with exactly the rest on any number of ranks, workers and batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cogvideox.data.order import Draw, Numbers, StepBatches, digest_of

# Numbers that keep the random streams of one seed apart; `order` uses those below 10.
_SHARDS, _WINDOWS = 10, 11


class StreamOrder:
    """`step(n)`: the draws of the `n`-th step, of all ranks together.

    `shard_of` has each sample's shard; those of one lie together. `counts` is how often each comes in an epoch (None:
    once), each time with a number of its own. `window` samples are shuffled with each other (1: none are). `per_step`
    samples make a step; `given` were used before step 0.
    """

    def __init__(
        self,
        shard_of: Numbers,
        window: int,
        per_step: int,
        seed: int,
        given: int = 0,
        counts: Numbers | None = None,
    ) -> None:
        shards = np.asarray(shard_of, dtype=np.int64)
        assert len(shards) > 0, "the data set has looked"
        times = np.ones_like(shards) if counts is None else np.asarray(counts, dtype=np.int64)
        self.window, self.per_step, self.seed, self.given = window, per_step, seed, given
        self.samples = int(times.sum())
        self._sizes = np.add.reduceat(times, np.concatenate([[0], np.flatnonzero(np.diff(shards)) + 1]))
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._shuffled: tuple[int, int, np.ndarray] = (-1, -1, np.empty(0, dtype=np.int64))

    def step(self, number: int) -> list[Draw]:
        """The draws of step `number`, counted from `given`."""
        first = self.given_after(number)
        return [self.draw(*divmod(position, self.samples)) for position in range(first, first + self.per_step)]

    def given_after(self, steps: int) -> int:
        """How much of the stream is used up after `steps` steps, all epochs together."""
        return self.given + steps * self.per_step

    def draw(self, epoch: int, place: int) -> Draw:
        """What stands at `place` of `epoch`."""
        number, within = divmod(place, self.window)
        if self._shuffled[:2] != (epoch, number):
            self._shuffled = (epoch, number, self._window_of(epoch, number))
        return Draw(int(self._shuffled[2][within]), epoch, self.seed)

    def _window_of(self, epoch: int, number: int) -> np.ndarray:
        permutation = np.random.default_rng([self.seed, _SHARDS, epoch]).permutation(len(self._sizes))
        ends = np.cumsum(self._sizes[permutation])
        first = number * self.window
        places = np.arange(first, min(first + self.window, self.samples))
        turns = np.searchsorted(ends, places, side="right")
        shards = permutation[turns]
        samples = self._starts[shards] + places - (ends[turns] - self._sizes[shards])
        return np.random.default_rng([self.seed, _WINDOWS, epoch, number]).permutation(samples)


class StreamBatches(StepBatches[StreamOrder]):
    """Batches in the order of `StreamOrder`, of samples with `shard_of`; `names` tell them from other ones."""

    def __init__(
        self,
        shard_of: Numbers,
        window: int,
        batch_size: int,
        rank: int,
        ranks: int,
        seed: int,
        *,
        counts: Numbers | None = None,
        names: Iterable[str] = (),
    ) -> None:
        digest = digest_of("shards", [seed, window], shard_of, counts, names)
        order = StreamOrder(shard_of, window, batch_size * ranks, seed, counts=counts)
        super().__init__(order, batch_size, rank, digest)
        self._shard_of, self._counts = shard_of, counts

    def state(self, steps: int) -> dict[str, Any]:
        """What to save after `steps` steps of the run: the epoch and how many samples of it all ranks were given."""
        epoch, given = divmod(self.order.given_after(steps - self.steps_before), self.order.samples)
        return {"data": self.digest, "steps": steps, "epoch": epoch, "given": given}

    def _go_on_after(self, state: Mapping[str, Any]) -> None:
        order = self.order
        given = state["epoch"] * order.samples + state["given"]
        self.steps_before = state["steps"]
        self.order = StreamOrder(self._shard_of, order.window, order.per_step, order.seed, given, self._counts)
        self.start = 0
