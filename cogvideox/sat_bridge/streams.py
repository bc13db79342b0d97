"""Training loaders for streams: of tar shards, exact and resumable; of data sets of one's own that only iterate."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, IterableDataset

from cogvideox.data.batches import as_told
from cogvideox.data.mixture import Mixture, collate
from cogvideox.data.stream_order import StreamBatches
from cogvideox.data.streaming import VideoDataset
from cogvideox.errors import UserError
from cogvideox.parallel import Group
from cogvideox.sat_bridge.numbered import StepCount, TellsReplaced, TrainLoader, loading_options, names_of
from cogvideox.sat_bridge.walk import Walk

ITERABLE = "a data set of one's own that only iterates"


class StreamLoader(TrainLoader):
    """As `TrainLoader`, in the order of `stream_order`: samples come shard by shard. For parts that are VideoDatasets.

    The seed and the shuffle window are those of the first part; a part that is named twice comes twice an epoch.
    """

    def __init__(
        self,
        data: Mixture,
        group: Group,
        args: argparse.Namespace,
        collate_fn: Any = None,
        places: Sequence[str] = (),
    ) -> None:
        first = data.parts[0][0]
        assert isinstance(first, VideoDataset), "is_stream has looked"
        batches = StreamBatches(
            shards_of(data),
            first.shuffle_buffer,
            args.batch_size,
            group.rank,
            group.size,
            first.seed,
            counts=data.counts,
            names=names_of(data),
        )
        super().__init__(data, batches, args, collate_fn, places)


def is_stream(data: Mixture) -> bool:
    """Whether all parts are tar shards, so that a StreamLoader can give them shard by shard."""
    return all(isinstance(dataset, VideoDataset) for dataset, _ in data.parts)


def shards_of(data: Mixture) -> np.ndarray:
    """A number for each sample of `data`, alike for those of one shard; samples of one shard lie together."""
    numbers: list[np.ndarray] = []
    used = 0
    for dataset, indices in data.parts:
        assert isinstance(dataset, VideoDataset), "is_stream has looked"
        numbers.append(dataset.shard_of(indices) + used)
        used += len(dataset.shards)
    return np.concatenate(numbers)


class IterableLoader(TellsReplaced):
    """Batches of a torch IterableDataset of one's own, which says itself which rank and worker gets what.

    With `iterable_dataset: custom` it gives whole batches, else samples. It begins anew where it ends. A resumed run
    reads and drops what it had before: the loader knows of no cheaper way.
    """

    def __init__(self, dataset: Dataset, args: argparse.Namespace, collate_fn: Any = None) -> None:
        super().__init__()
        self.dataset, self.walk = dataset, Walk()
        self._count, self._skip = StepCount(args.gradient_accumulation_steps), 0
        self._latest: Any = None
        gives_batches = args.iterable_dataset == "custom"
        self._loader = DataLoader(
            dataset,
            batch_size=None if gives_batches else args.batch_size,
            collate_fn=collate_fn or (None if gives_batches else collate),
            drop_last=not gives_batches,
            **loading_options(args),
        )

    @property
    def samples(self) -> int | None:
        """Nobody knows how many an epoch has."""
        return None

    clips = samples

    def start_at(self, iteration: int, skipped_batches: int = 0, state: Mapping[str, Any] | None = None) -> bool:
        """Continue with the batches of `iteration`, or after those of `state`; False if those are of other data."""
        self._skip = self._count.go_on(iteration, skipped_batches, state)
        self.walk.set(self._skip)
        return state is None or state.get("data") == ITERABLE

    def state(self, iteration: int, skipped_batches: int = 0) -> dict[str, Any]:
        """What to save after `iteration`: the batches that this rank was given."""
        return {"data": ITERABLE, "steps": self._count.after(iteration, skipped_batches)}

    @property
    def order_id(self) -> str:
        """It has no order that would be known here."""
        return ITERABLE

    def clips_of(self, step: int) -> list[str]:  # noqa: ARG002
        """None: a stream of one's own has no names that are known here."""
        return []

    def batch_of(self, step: int) -> Any:
        """This rank's batch of `step` if that was the latest, else None: a stream cannot be read again."""
        return self._latest if step == self.walk.next - 1 else None

    def __iter__(self) -> Iterator[Any]:
        for batch in self.walk.over(lambda: islice(self._endless(), self._skip, None)):
            self._latest = self.noted(batch)
            yield self._latest

    def _endless(self) -> Iterator[Any]:
        while True:
            is_empty = True
            for batch in as_told(iter(self._loader)):
                is_empty = False
                yield batch
            if is_empty:
                raise UserError(
                    "the iterable data set (data.target) gives no batch: it needs at least batch_size samples"
                )

    def __len__(self) -> int:
        raise UserError("--epochs needs data with a known length, but data.target is a stream: give --train-iters")


def only_iterates(datasets: Sequence[Dataset]) -> bool:
    """Whether there is a data set that has no numbered samples. UserError where it is not the only one."""
    streams = [each for each in datasets if isinstance(each, IterableDataset) and not isinstance(each, VideoDataset)]
    if streams and len(datasets) > 1:
        raise UserError(f"train_data names {len(datasets)} places, but an iterable data set of one's own stands alone")
    return bool(streams)
