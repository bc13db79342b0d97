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


class DrawnDataset(Dataset[dict[str, Any]]):
    """A data set whose samples have random choices in them, and may be of several sizes."""

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Sample `index` with the choices that `rng` makes."""
        raise NotImplementedError

    def bucket_of(self, index: int) -> int:  # noqa: ARG002
        """The number of the size that sample `index` has."""
        return 0

    def repeats(self, index: int) -> int:  # noqa: ARG002
        """How often sample `index` comes in an epoch."""
        return 1


class Mixture(Dataset[dict[str, Any]]):
    """`parts`: data sets, and which of their samples count, in order; one may be named more than once."""

    def __init__(self, parts: Sequence[tuple[Dataset, Sequence[int]]]) -> None:
        self.parts = [(dataset, list(indices)) for dataset, indices in parts]
        self._ends = list(accumulate(len(indices) for _, indices in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        dataset, index = self._find(draw.sample)
        if isinstance(dataset, DrawnDataset):
            return dataset.sample(index, draw.rng())
        return dataset[index]

    def buckets(self) -> list[int]:
        """Each sample's bucket; 0 where its data set knows of none."""
        return [
            dataset.bucket_of(index) if isinstance(dataset, DrawnDataset) else 0
            for dataset, indices in self.parts
            for index in indices
        ]

    def _find(self, number: int) -> tuple[Any, int]:
        place = bisect_right(self._ends, number)
        dataset, indices = self.parts[place]
        return dataset, indices[number - (self._ends[place - 1] if place else 0)]


def collate(samples: Sequence[Any]) -> Any:
    """torch's default batch of `samples`; where they are dicts, with what they stand in for beside it."""
    replaced = [each for sample in samples if isinstance(sample, dict) for each in sample.get(REPLACED, ())]
    if not replaced:
        return default_collate(list(samples))
    return default_collate([{key: sample[key] for key in sample if key != REPLACED} for sample in samples]) | {
        REPLACED: replaced
    }
