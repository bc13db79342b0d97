"""Loaders of numbered samples: for training each once an epoch, seeded and resumable; for evaluations in order."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from cogvideox.data.batches import as_told
from cogvideox.data.cached import CachedClips
from cogvideox.data.clips import Clip
from cogvideox.data.mixture import REPLACED, Mixture, collate
from cogvideox.data.order import Draw, RankBatches
from cogvideox.data.processes import serve_parent_alone
from cogvideox.data.stream_order import StreamBatches
from cogvideox.data.streaming import VideoDataset
from cogvideox.parallel import Group
from cogvideox.platform import has_gpu
from cogvideox.sat_bridge.walk import Walk


@dataclass
class StepCount:
    """How many steps, each a batch of every rank, a run has taken: `steps` until `iteration`, then `accumulation` each.

    Counted on from there, since a run may go on with another accumulation or batch size. `skipped` were drawn beside
    those of the iterations.
    """

    accumulation: int
    iteration: int = 0
    skipped: int = 0
    steps: int = 0

    def after(self, iteration: int, skipped: int) -> int:
        """The steps until `iteration`."""
        return self.steps + (iteration - self.iteration) * self.accumulation + skipped - self.skipped

    def go_on(self, iteration: int, skipped: int, state: Mapping[str, Any] | None) -> int:
        """Count on from `iteration`, with the steps that `state` says were taken; returns them."""
        steps = self.after(iteration, skipped) if state is None else state["steps"]
        self.iteration, self.skipped, self.steps = iteration, skipped, steps
        return steps


class TellsReplaced:
    """A loader that remembers which clips others stood in for: `replaced` has (kind, reason) by name, `new_replaced`
    those since it was last emptied.
    """

    def __init__(self) -> None:
        self.replaced: dict[str, tuple[str, str]] = {}
        self.new_replaced: list[tuple[str, str, str]] = []

    def noted(self, batch: Any) -> Any:
        """The batch without what its samples stand in for, which is noted; of data sets of one's own, any batch."""
        for name, kind, reason in batch.pop(REPLACED, []) if isinstance(batch, dict) else []:
            if name not in self.replaced:
                self.replaced[name] = (kind, reason)
                self.new_replaced.append((name, kind, reason))
        return batch


class TrainLoader(TellsReplaced):
    """What `training_main` iterates for training; `len` is the iterations of all `--epochs`, accumulation included.

    `places` are those of the data's parts, to tell files of one name apart.
    """

    def __init__(
        self,
        data: Mixture,
        batches: RankBatches | StreamBatches,
        args: argparse.Namespace,
        collate_fn: Any = None,
        places: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.dataset, self.batch_sampler, self.places = data, batches, places
        self.walk = Walk()
        self._count = StepCount(args.gradient_accumulation_steps)
        self._epochs = args.epochs or 1
        self._placed, self._collate = Placed(data, places), collate_fn or collate
        self._loader = DataLoader(
            self._placed, batch_sampler=batches, collate_fn=self._collate, **loading_options(args)
        )

    @property
    def samples(self) -> int | None:
        """The samples of an epoch, repeats included; None where nobody knows."""
        return len(self.dataset)

    @property
    def clips(self) -> int | None:
        """The different clips among them: a place that is named twice counts once."""
        sizes = [len(indices) for _, indices in self.dataset.parts]
        return sum(dict(zip(self.places, sizes, strict=True)).values()) if self.places else sum(sizes)

    def start_at(self, iteration: int, skipped_batches: int = 0, state: Mapping[str, Any] | None = None) -> bool:
        """Continue with the batches of `iteration` (an optimizer step); `skipped_batches` were drawn beside its own.

        `state` is what `state` gave when that was saved; False if it was saved of other data. May be called while the
        loader is iterated, which then goes on from there.
        """
        steps = self._count.go_on(iteration, skipped_batches, state)
        self.walk.set(steps)
        if state is not None:
            return self.batch_sampler.restore(state)
        self.batch_sampler.start = steps
        return True

    def state(self, iteration: int, skipped_batches: int = 0) -> dict[str, Any]:
        """What to save after `iteration`, to go on from there on any number of ranks."""
        return self.batch_sampler.state(self._count.after(iteration, skipped_batches))

    @property
    def order_id(self) -> str:
        """What tells this order of batches from others: its data, and how much of it makes a step."""
        return f"{self.batch_sampler.digest} {self.batch_sampler.order.per_step}"

    def clips_of(self, step: int) -> list[str]:
        """The clips of this rank in `step`, by name; what stood in for one is told elsewhere."""
        return [self._placed.name_of(draw) for draw in self.batch_sampler.batch(step - self.batch_sampler.steps_before)]

    def batch_of(self, step: int) -> Any:
        """This rank's batch of `step`, read again."""
        draws = self.batch_sampler.batch(step - self.batch_sampler.steps_before)
        batch = self._collate([self._placed[draw] for draw in draws])
        return {key: batch[key] for key in batch if key != REPLACED} if isinstance(batch, dict) else batch

    def __iter__(self) -> Iterator[Any]:
        return map(self.noted, self.walk.over(lambda: as_told(iter(self._loader))))

    def __len__(self) -> int:
        per_iteration = self.batch_sampler.order.per_step * self._count.accumulation
        return max(1, -(-self._epochs * len(self.dataset) // per_iteration))


class EvaluationLoader(TellsReplaced):
    """Batches of an evaluation in the data's order, dealt to the ranks; every iteration starts at its beginning.

    All ranks get equally many batches, since models are evaluated in step: a rank that has run out gets a sample that
    others have too, with weight 0. A batch has samples of one size.
    """

    def __init__(
        self,
        data: Mixture,
        batch_size: int,
        group: Group,
        args: argparse.Namespace,
        collate_fn: Any,
        places: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.group = data, batch_size, group
        buckets = data.buckets()
        self.batches: list[tuple[list[Draw], int]] = []
        for bucket in sorted(set(buckets)):
            members = [index for index, each in enumerate(buckets) if each == bucket]
            rounds = -(-len(members) // (batch_size * group.size))
            self.batches += [self._batch(number, members, args.seed) for number in range(rounds)]
        self._loader = DataLoader(
            Placed(data, places),
            batch_sampler=[draws for draws, _ in self.batches],
            collate_fn=collate_fn or collate,
            **loading_options(args),
        )

    def weight_of(self, number: int) -> int:
        """How many samples of batch `number` count."""
        return self.batches[number][1]

    def _batch(self, number: int, members: list[int], seed: int) -> tuple[list[Draw], int]:
        first = (number * self.group.size + self.group.rank) * self.batch_size
        own = members[first : first + self.batch_size]
        drawn = [Draw(index, 0, seed) for index in own or [members[first % len(members)]]]
        return drawn, len(own)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return map(self.noted, as_told(iter(self._loader)))


class Placed(Dataset[Any]):
    """The samples of `data`, which name the clips that they stand in for with their place, where there are several."""

    def __init__(self, data: Mixture, places: Sequence[str]) -> None:
        self.data, self.places = data, places

    def __getitem__(self, draw: Draw) -> Any:
        sample = self.data[draw]
        if len(set(self.places)) < 2 or not isinstance(sample, dict) or REPLACED not in sample:
            return sample
        place = self.places[self.data.part_of(draw.sample)]
        return sample | {REPLACED: [(f"{place}: {name}", kind, reason) for name, kind, reason in sample[REPLACED]]}

    def name_of(self, draw: Draw) -> str:
        """The clip's name in its place, with the place where there are several; a number where it has no name."""
        dataset, index = self.data.find(draw.sample)
        name = next(names_of(Mixture([(dataset, [index])])), f"sample {index}")
        return f"{self.places[self.data.part_of(draw.sample)]}: {name}" if len(set(self.places)) > 1 else name


@runtime_checkable
class HasClips(Protocol):
    """A data set that lists what it has, as SFTDataset does."""

    clips: Sequence[Any]


def names_of(data: Mixture) -> Iterator[str]:
    """The clips' names in their own places, as they stay where the data is moved; none of data sets of one's own."""
    for dataset, indices in data.parts:
        base = dataset.base if isinstance(dataset, CachedClips) else dataset
        if isinstance(base, VideoDataset):
            every = [f"{Path(each.shard.name).name}/{name}" for each in base.shards for name in each.names]
            yield from (every[index] for index in indices)
        elif isinstance(base, HasClips):
            clips = (base.clips[index] for index in indices)
            yield from (clip.record.name for clip in clips if isinstance(clip, Clip))


def loading_options(args: argparse.Namespace) -> dict[str, Any]:
    """DataLoader's options. Its own generator keeps worker seeds from moving the training's random stream."""
    options: dict[str, Any] = {
        "num_workers": args.num_workers,
        "pin_memory": has_gpu(),
        "generator": torch.Generator().manual_seed(args.seed),
    }
    if args.num_workers > 0:
        options |= {"prefetch_factor": args.prefetch_factor, "persistent_workers": True}
        options["worker_init_fn"] = serve_parent_alone
    return options
