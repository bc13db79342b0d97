"""Several data sets as one: samples by their number, each with its own random draws and its bucket."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from torch.utils.data import Dataset, default_collate

from cogvideox.data.order import Draw

REPLACED = "replaced"
"""Key of a sample that stands in for others: a list of (file, kind, reason). Batches have the lists joined."""


Part = Sequence[int] | np.ndarray
"""Samples of a data set that belong together, as those that are trained on, in order."""


class DrawnDataset(Dataset[dict[str, Any]]):
    """A data set whose samples have random choices in them, and may be of several sizes."""

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Sample `index` with the choices that `rng` makes."""
        raise NotImplementedError

    def sample_of_part(self, index: int, rng: np.random.Generator, part: Part) -> dict[str, Any]:  # noqa: ARG002
        """As `sample`; where another stands in for it, one of `part`."""
        return self.sample(index, rng)

    def bucket_of(self, index: int) -> int:  # noqa: ARG002
        """The number of the size that sample `index` has."""
        return 0

    def repeats(self, index: int) -> int:  # noqa: ARG002
        """How often sample `index` comes in an epoch."""
        return 1


class Mixture(Dataset[dict[str, Any]]):
    """`parts`: data sets, and which of their samples count, in order; one may be named more than once.

    `counts` is how often each sample of each part comes in an epoch, once where it is not given; each time has a number
    of its own, those of the first sample first.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Dataset, Sequence[int]]],
        counts: Sequence[Sequence[int] | np.ndarray] | None = None,
    ) -> None:
        self.parts = [(dataset, list(indices)) for dataset, indices in parts]
        self._ends = list(accumulate(len(indices) for _, indices in self.parts))
        given = [np.ones(len(indices)) for _, indices in self.parts] if counts is None else counts
        self.counts = np.concatenate([np.asarray(each, dtype=np.int64) for each in [[], *given]])
        self._numbers = np.cumsum(self.counts)  # where each sample's end
        self._stand_ins: list[Part] = [np.unique(np.asarray(indices, dtype=np.int64)) for _, indices in self.parts]

    def __len__(self) -> int:
        return int(self._numbers[-1]) if len(self._numbers) else 0

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        place, index = self._find(draw.sample)
        dataset = self.parts[place][0]
        if isinstance(dataset, DrawnDataset):
            return dataset.sample_of_part(index, draw.rng(), self._stand_ins[place])
        return dataset[index]

    def buckets(self) -> list[int]:
        """Each sample's bucket, once however often it comes; 0 where its data set knows of none."""
        return [
            dataset.bucket_of(index) if isinstance(dataset, DrawnDataset) else 0
            for dataset, indices in self.parts
            for index in indices
        ]

    def part_of(self, number: int) -> int:
        """Which part a number belongs to."""
        return self._find(number)[0]

    def find(self, number: int) -> tuple[Dataset, int]:
        """The data set that a number belongs to, and which of its samples it is."""
        place, index = self._find(number)
        return self.parts[place][0], index

    def _find(self, number: int) -> tuple[int, int]:
        """The place of a part, and which of its data set's samples it is."""
        sample = int(np.searchsorted(self._numbers, number, side="right"))
        place = bisect_right(self._ends, sample)
        return place, self.parts[place][1][sample - (self._ends[place - 1] if place else 0)]


def collate(samples: Sequence[Any]) -> Any:
    """torch's default batch of `samples`; where they are dicts, with what they stand in for beside it."""
    replaced = [each for sample in samples if isinstance(sample, dict) for each in sample.get(REPLACED, ())]
    if not replaced:
        return default_collate(list(samples))
    return default_collate([{key: sample[key] for key in sample if key != REPLACED} for sample in samples]) | {
        REPLACED: replaced
    }
