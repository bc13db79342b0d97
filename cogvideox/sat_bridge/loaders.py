"""Data loaders in place of SAT's: each sample once an epoch, seeded, resumable, the same on one rank as on many.

SAT 0.4.12 draws with replacement, whatever `--seed` says, and cannot resume on one process. Its dataset weights, splits
and flags keep their meaning here.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cogvideox.data.mixture import REPLACED, DrawnDataset, Mixture, collate
from cogvideox.data.order import Draw, RankBatches
from cogvideox.errors import UserError
from cogvideox.parallel import Group, current
from cogvideox.platform import has_gpu

logger = logging.getLogger(__name__)

CreateDataset = Callable[[str, argparse.Namespace], Dataset]


class TrainLoader:
    """What `training_main` iterates for training; `len` is the iterations of all `--epochs`, accumulation included.

    `replaced` has the clips that others stood in for, by name; `new_replaced` those since it was last emptied.
    """

    def __init__(self, data: Mixture, batches: RankBatches, args: argparse.Namespace, collate_fn: Any) -> None:
        self.dataset, self.batch_sampler = data, batches
        self.replaced: dict[str, tuple[str, str]] = {}
        self.new_replaced: list[tuple[str, str, str]] = []
        self._accumulation = args.gradient_accumulation_steps
        self._epochs = args.epochs or 1
        self._loader = DataLoader(data, batch_sampler=batches, collate_fn=collate_fn or collate, **_loading(args))

    @property
    def samples(self) -> int | None:
        """The samples of an epoch; None where nobody knows."""
        return len(self.dataset)

    def start_at(self, iteration: int, skipped_batches: int = 0, state: Mapping[str, Any] | None = None) -> bool:
        """Continue with the batches of `iteration` (an optimizer step); `skipped_batches` were drawn beside its own.

        `state` is what `state` gave when that was saved; False if it was saved of other data.
        """
        if state is not None:
            return self.batch_sampler.restore(state)
        self.batch_sampler.start = iteration * self._accumulation + skipped_batches
        return True

    def state(self, iteration: int, skipped_batches: int = 0) -> dict[str, Any]:
        """What to save after `iteration`, to go on from there on any number of ranks."""
        return self.batch_sampler.state(iteration * self._accumulation + skipped_batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in as_told(iter(self._loader)):
            for name, kind, reason in _replaced_in(batch):
                if name not in self.replaced:
                    self.replaced[name] = (kind, reason)
                    self.new_replaced.append((name, kind, reason))
            yield batch

    def __len__(self) -> int:
        per_iteration = self.batch_sampler.order.per_step * self._accumulation
        return max(1, -(-self._epochs * len(self.dataset) // per_iteration))


class EvaluationLoader:
    """Batches of an evaluation in the data's order, dealt to the ranks; every iteration starts at its beginning.

    All ranks get equally many batches, since models are evaluated in step: a rank that has run out gets a sample that
    others have too, with weight 0. A batch has samples of one size.
    """

    def __init__(self, data: Mixture, batch_size: int, group: Group, args: argparse.Namespace, collate_fn: Any) -> None:
        self.dataset, self.batch_size, self.group = data, batch_size, group
        buckets = data.buckets()
        self.batches: list[tuple[list[Draw], int]] = []
        for bucket in sorted(set(buckets)):
            members = [index for index, each in enumerate(buckets) if each == bucket]
            rounds = -(-len(members) // (batch_size * group.size))
            self.batches += [self._batch(number, members, args.seed) for number in range(rounds)]
        self._loader = DataLoader(
            data,
            batch_sampler=[draws for draws, _ in self.batches],
            collate_fn=collate_fn or collate,
            **_loading(args),
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
        for batch in as_told(iter(self._loader)):
            _replaced_in(batch)
            yield batch


def _replaced_in(batch: Any) -> list[tuple[str, str, str]]:
    """Take out of a batch what its samples stand in for; data sets of one's own may give batches of any kind."""
    return batch.pop(REPLACED, []) if isinstance(batch, dict) else []


def as_told(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; a UserError of a worker process as it was raised there, and one for a worker that has died."""
    try:
        yield from batches
    except UserError as error:
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].rstrip()) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that reads clips has died ({str(error).splitlines()[0]}): if it was killed for memory, lower "
            "--num-workers or --prefetch-factor, or enlarge /dev/shm"
        ) from error


def make_loaders(
    args: argparse.Namespace, create_dataset_function: CreateDataset, collate_fn: Any = None
) -> tuple[TrainLoader | None, EvaluationLoader | None, EvaluationLoader | None]:
    """Stands in for SAT's function of this name: train, validation and test loaders from `args`; sets `args.do_*`.

    Raises:
        UserError: a split that leaves the training set empty, weights that do not match the data sets.
    """
    # They build on this module.
    from cogvideox.sat_bridge.streams import IterableLoader, StreamLoader, is_stream, only_iterates

    group = current().data
    trained = [create_dataset_function(path, args) for path in args.train_data or []]
    own_stream = trained[0] if only_iterates(trained) else None
    parts = _mixtures(args, create_dataset_function, [] if own_stream is not None else trained)
    train: Any = None
    valid = test = None
    if own_stream is not None:
        train = IterableLoader(own_stream, args, collate_fn)
    elif parts["train"] is not None and args.batch_size > 0:
        data = parts["train"]
        if is_stream(data):
            train = StreamLoader(data, group, args, collate_fn)
        else:
            batches = RankBatches(data.buckets(), args.batch_size, group.rank, group.size, args.seed)
            train = TrainLoader(data, batches, args, collate_fn)
    batch_size = args.eval_batch_size or args.batch_size
    if parts["valid"] is not None:
        valid = EvaluationLoader(parts["valid"], batch_size, group, args, collate_fn)
    if parts["test"] is not None:
        test = EvaluationLoader(parts["test"], batch_size, group, args, collate_fn)
    args.do_train, args.do_valid, args.do_test = train is not None, valid is not None, test is not None
    return train, valid, test


def _mixtures(args: argparse.Namespace, create: CreateDataset, trained: Sequence[Dataset]) -> dict[str, Mixture | None]:
    """The data to train on, which may be split for the other two, and theirs."""
    shares = dict(zip(("train", "valid", "test"), split_shares(args), strict=True))
    parts: dict[str, list[tuple[Dataset, list[int]]]] = {"train": [], "valid": [], "test": []}
    weights = args.train_data_weights or [1] * len(trained)
    for dataset, weight in zip(trained, weights, strict=False):
        for name, indices in split_indices(len(dataset), shares, args.seed).items():  # type: ignore[arg-type]
            if indices:
                times = [(index, weight * _repeats(dataset, index) if name == "train" else 1) for index in indices]
                parts[name].append((dataset, [index for index, count in times for _ in range(count)]))
    for name, paths in (("valid", args.valid_data), ("test", args.test_data)):
        for path in paths or []:
            dataset = create(path, args)
            if not isinstance(dataset, Sized):
                raise UserError(f"{name}_data {path}: evaluations need numbered samples, not a stream (data.target)")
            parts[name].append((dataset, list(range(len(dataset)))))
    if trained and not parts["train"]:
        raise UserError(f"split {args.split!r} leaves no sample to train on in {args.train_data} (args.split)")
    return {name: Mixture(found) if found else None for name, found in parts.items()}


def _repeats(dataset: Dataset, index: int) -> int:
    return dataset.repeats(index) if isinstance(dataset, DrawnDataset) else 1


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
