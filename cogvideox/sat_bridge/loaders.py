"""Data loaders in place of SAT's: each sample once an epoch, seeded, resumable, the same on one rank as on many.

SAT 0.4.12 draws with replacement, whatever `--seed` says, and cannot resume on one process. Its dataset weights, splits
and flags keep their meaning here.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from cogvideox.errors import UserError
from cogvideox.parallel import Group, current
from cogvideox.platform import has_gpu

logger = logging.getLogger(__name__)

CreateDataset = Callable[[str, argparse.Namespace], Dataset]


class EpochBatches:
    """Index batches of one data parallel rank, without end: epoch after epoch, each a permutation by (seed, epoch).

    The ranks deal out one common stream, so that an epoch is the same set of samples on any number of ranks, and batch
    `n` is known without drawing those before it.
    """

    def __init__(self, samples: int, batch_size: int, group: Group, seed: int) -> None:
        self.samples, self.batch_size, self.group, self.seed = samples, batch_size, group, seed
        self.start_batch = 0
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def batch(self, number: int) -> list[int]:
        """The indices of this rank's batch `number`, counted from the run's beginning."""
        first = (number * self.group.size + self.group.rank) * self.batch_size
        return [self._index(position) for position in range(first, first + self.batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start_batch
        while True:
            yield self.batch(number)
            number += 1

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, self.samples)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        return int(self._order[place])


class TrainLoader:
    """What `training_main` iterates for training; `len` is the iterations of all `--epochs`, accumulation included."""

    def __init__(self, dataset: Dataset, batches: EpochBatches, args: argparse.Namespace, collate_fn: Any) -> None:
        self.dataset, self.batch_sampler = dataset, batches
        self._accumulation = args.gradient_accumulation_steps
        self._epochs = args.epochs or 1
        self._loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate_fn, **_loading(args))

    def start_at(self, iteration: int, skipped_batches: int = 0) -> None:
        """Continue with the batches of `iteration` (an optimizer step); `skipped_batches` were drawn beside its own."""
        self.batch_sampler.start_batch = iteration * self._accumulation + skipped_batches

    def __iter__(self) -> Iterator[Any]:
        return as_told(iter(self._loader))

    def __len__(self) -> int:
        per_iteration = self.batch_sampler.batch_size * self.batch_sampler.group.size * self._accumulation
        return max(1, -(-self._epochs * self.batch_sampler.samples // per_iteration))


class EvaluationLoader:
    """Batches of an evaluation in the data set's order, dealt to the ranks; every iteration starts at its beginning.

    All ranks get equally many batches, since models are evaluated in step: a rank that has run out gets a sample that
    others have too, with weight 0.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, group: Group, args: argparse.Namespace, collate_fn: Any
    ) -> None:
        self.dataset, self.batch_size, self.group = dataset, batch_size, group
        samples = len(dataset)  # type: ignore[arg-type]
        rounds = -(-samples // (batch_size * group.size))
        self.batches = [self._batch(number, samples) for number in range(rounds)]
        self._loader = DataLoader(
            dataset,
            batch_sampler=[indices for indices, _ in self.batches],
            collate_fn=collate_fn,
            **_loading(args),
        )

    def weight_of(self, number: int) -> int:
        """How many samples of batch `number` count."""
        return self.batches[number][1]

    def _batch(self, number: int, samples: int) -> tuple[list[int], int]:
        first = (number * self.group.size + self.group.rank) * self.batch_size
        indices = list(range(first, min(first + self.batch_size, samples)))
        return (indices, len(indices)) if indices else ([first % samples], 0)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return as_told(iter(self._loader))


def as_told(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; a UserError of a worker process as it was raised there, not wrapped in a traceback's text."""
    try:
        yield from batches
    except UserError as error:
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].rstrip()) from None


def make_loaders(
    args: argparse.Namespace, create_dataset_function: CreateDataset, collate_fn: Any = None
) -> tuple[TrainLoader | None, EvaluationLoader | None, EvaluationLoader | None]:
    """Stands in for SAT's function of this name: train, validation and test loaders from `args`; sets `args.do_*`.

    Raises:
        UserError: a split that leaves the training set empty, weights that do not match the data sets.
    """
    group = current().data
    parts = _datasets(args, create_dataset_function)
    train = valid = test = None
    if parts["train"] is not None and args.batch_size > 0:
        batches = EpochBatches(len(parts["train"]), args.batch_size, group, args.seed)  # type: ignore[arg-type]
        train = TrainLoader(parts["train"], batches, args, collate_fn)
    batch_size = args.eval_batch_size or args.batch_size
    if parts["valid"] is not None:
        valid = EvaluationLoader(parts["valid"], batch_size, group, args, collate_fn)
    if parts["test"] is not None:
        test = EvaluationLoader(parts["test"], batch_size, group, args, collate_fn)
    args.do_train, args.do_valid, args.do_test = train is not None, valid is not None, test is not None
    return train, valid, test


def _datasets(args: argparse.Namespace, create: CreateDataset) -> dict[str, Dataset | None]:
    shares = dict(zip(("train", "valid", "test"), split_shares(args), strict=True))
    parts: dict[str, list[Dataset]] = {"train": [], "valid": [], "test": []}
    weights = args.train_data_weights or [1] * len(args.train_data or [])
    for path, weight in zip(args.train_data or [], weights, strict=True):
        dataset = create(path, args)
        for name, indices in split_indices(len(dataset), shares, args.seed).items():  # type: ignore[arg-type]
            if indices:
                parts[name].append(Subset(dataset, indices * (weight if name == "train" else 1)))
    for name, paths in (("valid", args.valid_data), ("test", args.test_data)):
        parts[name].extend(create(path, args) for path in paths or [])
    if args.train_data and not parts["train"]:
        raise UserError(f"split {args.split!r} leaves no sample to train on in {args.train_data} (args.split)")
    return {name: ConcatDataset(found) if found else None for name, found in parts.items()}


def split_shares(args: argparse.Namespace) -> list[float]:
    """The shares of training, validation and test data in `--split`, as SAT reads it; they sum to 1."""
    shares = [float(part) for part in str(args.split).replace("/", ",").split(",")]
    if sum(shares) < 1:
        shares.append(1 - sum(shares))
    shares = (shares + [0.0, 0.0])[:3]
    if args.valid_data:
        shares[1] = 0.0
    if args.test_data:
        shares[2] = 0.0
    if min(shares) < 0 or shares[0] <= 0:
        raise UserError(
            f"split {args.split!r} must be up to three shares ≥ 0, the first (training) above 0 (args.split)"
        )
    return [share / sum(shares) for share in shares]


def split_indices(samples: int, shares: dict[str, float], seed: int) -> dict[str, list[int]]:
    """Deal `range(samples)` out by `shares`, rounded, by chance from `seed`; training gets the rest, at least one."""
    if shares["train"] == 1.0:
        return {"train": list(range(samples)), "valid": [], "test": []}
    order = np.random.default_rng(seed).permutation(samples).tolist()
    result: dict[str, list[int]] = {}
    for name in ("valid", "test"):
        wanted = min(round(shares[name] * samples), len(order) - 1)
        result[name], order = sorted(order[:wanted]), order[wanted:]
    result["train"] = sorted(order)
    return result


def _loading(args: argparse.Namespace) -> dict[str, Any]:
    """DataLoader's options. Its own generator keeps worker seeds from moving the training's random stream."""
    options: dict[str, Any] = {
        "num_workers": args.num_workers,
        "pin_memory": has_gpu(),
        "generator": torch.Generator().manual_seed(args.seed),
    }
    if args.num_workers > 0:
        options |= {"prefetch_factor": args.prefetch_factor, "persistent_workers": True}
    return options
