"""In which order samples are trained on: a function of (seed, epoch, sample), whatever ranks and workers there are.

Each bucket (samples of one size) is an endless stream: its samples permuted, epoch after epoch. A step takes the next
samples of one bucket's stream, as many as all ranks need together; which bucket's turn it is, is shuffled within an
epoch. What a bucket cannot fill a step with waits for the next epoch, so that none is left out and none comes twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

# Numbers that keep the random streams of one seed apart.
_SAMPLES, _TURNS, _DRAWS = 0, 1, 2


class Draw(NamedTuple):
    """Sample number `sample` of the data in `epoch`; everything random about it comes from `rng()`."""

    sample: int
    epoch: int
    seed: int

    def rng(self) -> np.random.Generator:
        """The same for the same draw, in any process."""
        return np.random.default_rng([self.seed, _DRAWS, self.epoch, self.sample])


class Order:
    """`step(n)`: the draws of the `n`-th step, of all ranks together.

    `bucket_of` has each sample's bucket; `per_step` samples make a step; `taken` is how much of each bucket's stream
    was used up before step 0, by a run on another number of ranks for example.
    """

    def __init__(
        self, bucket_of: Sequence[int], per_step: int, seed: int, taken: Mapping[int, int] | None = None
    ) -> None:
        buckets = np.asarray(bucket_of, dtype=np.int64)
        self.per_step, self.seed, self.samples = per_step, seed, len(buckets)
        self._members = {int(bucket): np.flatnonzero(buckets == bucket) for bucket in np.unique(buckets)}
        self._before = {bucket: int((taken or {}).get(bucket, 0)) for bucket in self._members}
        self._first_epoch = min(done // len(self._members[bucket]) for bucket, done in self._before.items())
        self._first_steps = [0]  # of each epoch from the first on
        self._turns: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self._permuted: dict[int, tuple[int, np.ndarray]] = {}

    def step(self, number: int) -> list[Draw]:
        """The draws of step `number`, counted from `taken`; all of one bucket."""
        epoch, place = self._locate(number)
        turns = self._turns_of(epoch)
        bucket = int(turns[place])
        done = self._steps_until(bucket, epoch) + int((turns[:place] == bucket).sum())
        first = self._before[bucket] + done * self.per_step
        return [self._draw(bucket, position) for position in range(first, first + self.per_step)]

    def taken(self, steps: int) -> dict[int, int]:
        """How much of each bucket's stream is used up after `steps` steps."""
        epoch, place = self._locate(steps)
        turns = self._turns_of(epoch)[:place]
        return {
            bucket: before + (self._steps_until(bucket, epoch) + int((turns == bucket).sum())) * self.per_step
            for bucket, before in self._before.items()
        }

    def epoch_of(self, number: int) -> int:
        """The epoch that step `number` belongs to."""
        return self._locate(number)[0]

    def _draw(self, bucket: int, position: int) -> Draw:
        members = self._members[bucket]
        epoch, place = divmod(position, len(members))
        known, permutation = self._permuted.get(bucket, (-1, members))
        if known != epoch:
            permutation = np.random.default_rng([self.seed, _SAMPLES, bucket, epoch]).permutation(members)
            self._permuted[bucket] = (epoch, permutation)
        return Draw(int(permutation[place]), epoch, self.seed)

    def _steps_until(self, bucket: int, epoch: int) -> int:
        """Steps that a bucket has filled before `epoch` begins."""
        available = epoch * len(self._members[bucket]) - self._before[bucket]
        return max(0, available // self.per_step)

    def _locate(self, number: int) -> tuple[int, int]:
        """The epoch of step `number`, and the step's place in it."""
        while self._first_steps[-1] <= number:
            epoch = self._first_epoch + len(self._first_steps)
            self._first_steps.append(sum(self._steps_until(bucket, epoch) for bucket in self._members))
        at = int(np.searchsorted(self._first_steps, number, side="right")) - 1
        return self._first_epoch + at, number - self._first_steps[at]

    def _turns_of(self, epoch: int) -> np.ndarray:
        """Which bucket's turn each step of `epoch` is."""
        if self._turns[0] != epoch:
            counts = [
                self._steps_until(bucket, epoch + 1) - self._steps_until(bucket, epoch) for bucket in self._members
            ]
            turns = np.repeat(list(self._members), counts)
            self._turns = (epoch, np.random.default_rng([self.seed, _TURNS, epoch]).permutation(turns))
        return self._turns[1]


class Steps(Protocol):
    """An order of samples: `step(n)` has the draws of step `n`, of all ranks together."""

    per_step: int

    def step(self, number: int) -> list[Draw]: ...


S = TypeVar("S", bound=Steps)


class StepBatches(Generic[S]):
    """This rank's part of every step of `order`, as a DataLoader's batch sampler: without end, from `start` on."""

    def __init__(self, order: S, batch_size: int, rank: int) -> None:
        self.order, self.batch_size, self.rank = order, batch_size, rank
        self.start = 0  # the step to begin with
        self._steps_before = 0  # steps of the run before the order's step 0

    def batch(self, number: int) -> list[Draw]:
        """The draws of this rank in step `number`."""
        first = self.rank * self.batch_size
        return self.order.step(number)[first : first + self.batch_size]

    def __iter__(self) -> Iterator[list[Draw]]:
        number = self.start
        while True:
            yield self.batch(number)
            number += 1


class RankBatches(StepBatches[Order]):
    """Batches in the order of `Order`, of samples with `bucket_of`."""

    def __init__(self, bucket_of: Sequence[int], batch_size: int, rank: int, ranks: int, seed: int) -> None:
        super().__init__(Order(bucket_of, batch_size * ranks, seed), batch_size, rank)
        self._bucket_of = bucket_of

    def state(self, steps: int) -> dict[str, Any]:
        """What to save after `steps` steps of the run, to go on from there on any number of ranks."""
        return {
            "samples": self.order.samples,
            "per_step": self.order.per_step,
            "steps": steps,
            "steps_before": self._steps_before,
            "taken_before": self.order.taken(0),
            "taken": self.order.taken(steps - self._steps_before),
        }

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Go on after what `state` says was taken. False if it was saved of other data: then only its steps count."""
        if state["samples"] != self.order.samples:
            self.start = state["steps"]
            return False
        is_same = state["per_step"] == self.order.per_step
        taken = state["taken_before"] if is_same else state["taken"]
        self._steps_before = state["steps_before"] if is_same else state["steps"]
        self.order = Order(self._bucket_of, self.order.per_step, self.order.seed, taken)
        self.start = state["steps"] - self._steps_before
        return True
