"""In which order samples are trained on: a function of (seed, epoch, sample), whatever ranks and workers there are.

Each bucket (samples of one size) is an endless stream: its samples permuted, epoch after epoch. A step takes the next
samples of one bucket's stream, as many as all ranks need together; which bucket's turn it is, is shuffled within an
epoch. What a bucket cannot fill a step with waits for the next epoch, so that none is left out and none comes twice.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

# Numbers that keep the random streams of one seed apart.
_SAMPLES, _TURNS, _DRAWS, _PHASES = 0, 1, 2, 3

Numbers = Sequence[int] | np.ndarray


class Draw(NamedTuple):
    """Sample number `sample` of the data in `epoch`; everything random about it comes from `rng()`."""

    sample: int
    epoch: int
    seed: int

    def rng(self) -> np.random.Generator:
        """The same for the same draw, in any process."""
        return np.random.default_rng([self.seed, _DRAWS, self.epoch, self.sample])


class _Bucket:
    """The samples of one size, each with how often it comes in an epoch.

    Where all come once, an epoch is one permutation of them. Else it has as many rounds as the most frequent one comes
    times: a sample's turns lie evenly among them, from a random place on, so that nothing grows with the repeats.
    """

    def __init__(self, number: int, firsts: np.ndarray, counts: np.ndarray, seed: int) -> None:
        self.number, self.seed = number, seed
        self.firsts, self.counts = firsts, counts  # a sample's first number, which its repeats follow
        self.size, self.rounds = int(counts.sum()), int(counts.max())
        self._phases: tuple[int, np.ndarray] = (-1, counts)
        self._round: tuple[int, int, np.ndarray] = (-1, 0, firsts)  # its epoch, where it begins, what it has

    def sample_at(self, epoch: int, place: int) -> int:
        """The sample's number at `place` of `epoch`."""
        known, begins, samples = self._round
        if known != epoch or not begins <= place < begins + len(samples):
            begins, samples = self._round_at(epoch, place)
            self._round = (epoch, begins, samples)
        return int(samples[place - begins])

    def _round_at(self, epoch: int, place: int) -> tuple[int, np.ndarray]:
        number = bisect_right(range(1, self.rounds), place, key=lambda each: int(self._had(epoch, each).sum()))
        had, will_have = self._had(epoch, number), self._had(epoch, number + 1)
        turns = will_have > had
        key = [self.seed, _SAMPLES, self.number, epoch, *([number] if number else [])]
        return int(had.sum()), np.random.default_rng(key).permutation((self.firsts + had)[turns])

    def _had(self, epoch: int, rounds: int) -> np.ndarray:
        """How often each sample came in the first `rounds` of an epoch."""
        if self._phases[0] != epoch:
            rng = np.random.default_rng([self.seed, _PHASES, self.number, epoch])
            self._phases = (epoch, rng.integers(self.rounds, size=len(self.counts)))
        return (rounds * self.counts + self._phases[1]) // self.rounds


class Order:
    """`step(n)`: the draws of the `n`-th step, of all ranks together.

    `bucket_of` has each sample's bucket, and `counts` how often it comes in an epoch (None: once); each time has a
    number of its own, those of the first sample first. `per_step` samples make a step; `taken` is how much of each
    bucket's stream was used up before step 0, by a run on another number of ranks for example.
    """

    def __init__(
        self,
        bucket_of: Numbers,
        per_step: int,
        seed: int,
        taken: Mapping[int, int] | None = None,
        counts: Numbers | None = None,
    ) -> None:
        buckets = np.asarray(bucket_of, dtype=np.int64)
        times = np.ones_like(buckets) if counts is None else np.asarray(counts, dtype=np.int64)
        firsts = np.cumsum(times) - times
        self.per_step, self.seed, self.samples = per_step, seed, int(times.sum())
        self._buckets: dict[int, _Bucket] = {}
        for number in np.unique(buckets).tolist():
            members = np.flatnonzero(buckets == number)
            self._buckets[number] = _Bucket(number, firsts[members], times[members], seed)
        self._before = {bucket: int((taken or {}).get(bucket, 0)) for bucket in self._buckets}
        self._first_epoch = min(done // self._buckets[bucket].size for bucket, done in self._before.items())
        self._first_steps = [0]  # of each epoch from the first on
        self._turns: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def step(self, number: int) -> list[Draw]:
        """The draws of step `number`, counted from `taken`; all of one bucket."""
        epoch, place = self._locate(number)
        bucket = self._buckets[int(self._turns_of(epoch)[place])]
        first = self._before[bucket.number] + self._steps_of(bucket.number, epoch, place) * self.per_step
        places = (divmod(position, bucket.size) for position in range(first, first + self.per_step))
        return [Draw(bucket.sample_at(*each), each[0], self.seed) for each in places]

    def taken(self, steps: int) -> dict[int, int]:
        """How much of each bucket's stream is used up after `steps` steps."""
        epoch, place = self._locate(steps)
        return {
            bucket: before + self._steps_of(bucket, epoch, place) * self.per_step
            for bucket, before in self._before.items()
        }

    def epoch_of(self, number: int) -> int:
        """The epoch that step `number` belongs to."""
        return self._locate(number)[0]

    def _steps_of(self, bucket: int, epoch: int, place: int) -> int:
        """Steps that a bucket has filled before `place` of `epoch`."""
        own = place if len(self._buckets) == 1 else int((self._turns_of(epoch)[:place] == bucket).sum())
        return self._steps_until(bucket, epoch) + own

    def _steps_until(self, bucket: int, epoch: int) -> int:
        """Steps that a bucket has filled before `epoch` begins."""
        available = epoch * self._buckets[bucket].size - self._before[bucket]
        return max(0, available // self.per_step)

    def _locate(self, number: int) -> tuple[int, int]:
        """The epoch of step `number`, and the step's place in it."""
        while self._first_steps[-1] <= number:
            epoch = self._first_epoch + len(self._first_steps)
            self._first_steps.append(sum(self._steps_until(bucket, epoch) for bucket in self._buckets))
        at = int(np.searchsorted(self._first_steps, number, side="right")) - 1
        return self._first_epoch + at, number - self._first_steps[at]

    def _turns_of(self, epoch: int) -> np.ndarray:
        """Which bucket's turn each step of `epoch` is."""
        counts = [self._steps_until(bucket, epoch + 1) - self._steps_until(bucket, epoch) for bucket in self._buckets]
        if len(self._buckets) == 1:
            return np.broadcast_to(np.int64(next(iter(self._buckets))), counts[0])
        if self._turns[0] != epoch:
            turns = np.repeat(list(self._buckets), counts)
            self._turns = (epoch, np.random.default_rng([self.seed, _TURNS, epoch]).permutation(turns))
        return self._turns[1]


class Steps(Protocol):
    """An order of samples: `step(n)` has the draws of step `n`, of all ranks together."""

    per_step: int

    def step(self, number: int) -> list[Draw]: ...


S = TypeVar("S", bound=Steps)


class StepBatches(Generic[S]):
    """This rank's part of every step of `order`, as a DataLoader's batch sampler: without end, from `start` on."""

    def __init__(self, order: S, batch_size: int, rank: int, digest: str) -> None:
        """`digest`: of the data, as `digest_of` gives it."""
        self.order, self.batch_size, self.rank = order, batch_size, rank
        self.digest = digest
        self.start = 0  # the step to begin with
        self.steps_before = 0  # steps of the run before the order's step 0

    def batch(self, number: int) -> list[Draw]:
        """The draws of this rank in step `number`."""
        first = self.rank * self.batch_size
        return self.order.step(number)[first : first + self.batch_size]

    def __iter__(self) -> Iterator[list[Draw]]:
        number = self.start
        while True:
            yield self.batch(number)
            number += 1

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Go on after what `state` says was taken. False if it was saved of other data: then only its steps count."""
        if state.get("data") != self.digest:
            self.start = state["steps"]
            return False
        self._go_on_after(state)
        return True

    def _go_on_after(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError


def digest_of(
    kind: str, settings: Sequence[int], numbers: Numbers, counts: Numbers | None, names: Iterable[str]
) -> str:
    """What tells the data of an order from other data: each sample's name, number and count (None: 1 each), and what it
    is shuffled by.
    """
    digest = hashlib.sha256(f"{kind} {list(settings)}".encode())
    for column in (numbers, np.ones(len(numbers)) if counts is None else counts):
        digest.update(np.asarray(column, dtype=np.int64).tobytes())
    for name in names:
        digest.update(f"\0{name}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class RankBatches(StepBatches[Order]):
    """Batches in the order of `Order`, of samples with `bucket_of` and `counts`; `names` tell them from other ones."""

    def __init__(
        self,
        bucket_of: Sequence[int],
        batch_size: int,
        rank: int,
        ranks: int,
        seed: int,
        *,
        counts: Numbers | None = None,
        names: Iterable[str] = (),
    ) -> None:
        digest = digest_of("samples", [seed], bucket_of, counts, names)
        super().__init__(Order(bucket_of, batch_size * ranks, seed, counts=counts), batch_size, rank, digest)
        self._bucket_of, self._counts = bucket_of, counts

    def state(self, steps: int) -> dict[str, Any]:
        """What to save after `steps` steps of the run, to go on from there on any number of ranks."""
        return {
            "data": self.digest,
            "per_step": self.order.per_step,
            "steps": steps,
            "steps_before": self.steps_before,
            "taken_before": self.order.taken(0),
            "taken": self.order.taken(steps - self.steps_before),
        }

    def _go_on_after(self, state: Mapping[str, Any]) -> None:
        is_same = state["per_step"] == self.order.per_step
        taken = state["taken_before"] if is_same else state["taken"]
        self.steps_before = state["steps_before"] if is_same else state["steps"]
        self.order = Order(self._bucket_of, self.order.per_step, self.order.seed, taken, self._counts)
        self.start = state["steps"] - self.steps_before
