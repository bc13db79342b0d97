"""Data loaders in place of SAT's: each sample once an epoch, seeded, resumable, the same on one rank as on many.

SAT 0.4.12 draws with replacement, whatever `--seed` says, and cannot resume on one process. Its dataset weights, splits
and flags keep their meaning here. Which loader is whose is chosen here; `numbered` and `streams` have them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from cogvideox.config.split import shares_of
from cogvideox.data.mixture import DrawnDataset, Mixture
from cogvideox.data.order import RankBatches
from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.sat_bridge.numbered import EvaluationLoader, TrainLoader, names_of
from cogvideox.sat_bridge.streams import IterableLoader, StreamLoader, is_stream, only_iterates

__all__ = ["EvaluationLoader", "TrainLoader", "make_loaders", "split_indices", "split_shares"]

CreateDataset = Callable[[str, argparse.Namespace], Dataset]


@dataclass
class _Part:
    """Samples of the data set at `place`, and how often each of them comes in an epoch."""

    place: str
    dataset: Dataset
    indices: Sequence[int]
    counts: Sequence[int] | np.ndarray


def make_loaders(
    args: argparse.Namespace, create_dataset_function: CreateDataset, collate_fn: Any = None
) -> tuple[TrainLoader | None, EvaluationLoader | None, EvaluationLoader | None]:
    """Stands in for SAT's function of this name: train, validation and test loaders from `args`; sets `args.do_*`.

    Raises:
        UserError: a split or weights that leave nothing to train on, an evaluation on a stream.
    """
    trained = [create_dataset_function(path, args) for path in args.train_data or []]
    own_stream = trained[0] if only_iterates(trained) else None
    parts = _parts(args, create_dataset_function, [] if own_stream is not None else trained)
    train: Any = None
    if own_stream is not None:
        train = IterableLoader(own_stream, args, collate_fn)
    elif parts["train"] and args.batch_size > 0:
        train = _train_loader(parts["train"], args, collate_fn)
    valid, test = (_evaluation_loader(parts[name], args, collate_fn) for name in ("valid", "test"))
    args.do_train, args.do_valid, args.do_test = train is not None, valid is not None, test is not None
    return train, valid, test


def _train_loader(parts: Sequence[_Part], args: argparse.Namespace, collate_fn: Any) -> TrainLoader:
    group = current().data
    data = Mixture([(part.dataset, part.indices) for part in parts], [part.counts for part in parts])
    places = [part.place for part in parts]
    if is_stream(data):
        return StreamLoader(data, group, args, collate_fn, places)
    batches = RankBatches(
        data.buckets(),
        args.batch_size,
        group.rank,
        group.size,
        args.seed,
        counts=data.counts,
        names=names_of(data),
    )
    return TrainLoader(data, batches, args, collate_fn, places)


def _evaluation_loader(parts: Sequence[_Part], args: argparse.Namespace, collate_fn: Any) -> EvaluationLoader | None:
    if not parts:
        return None
    data = Mixture([(part.dataset, part.indices) for part in parts])
    batch_size = args.eval_batch_size or args.batch_size
    return EvaluationLoader(data, batch_size, current().data, args, collate_fn, [part.place for part in parts])


def _parts(args: argparse.Namespace, create: CreateDataset, trained: Sequence[Dataset]) -> dict[str, list[_Part]]:
    """The data to train on, which may be split for the other two, and theirs."""
    parts = _split(args, trained) if trained else {"train": [], "valid": [], "test": []}
    for name, paths in (("valid", args.valid_data), ("test", args.test_data)):
        for path in paths or []:
            dataset = create(path, args)
            if not isinstance(dataset, Sized):
                raise UserError(f"{name}_data {path}: evaluations need numbered samples, not a stream (data.target)")
            parts[name].append(_Part(path, dataset, range(len(dataset)), [1] * len(dataset)))
    return parts


def _split(args: argparse.Namespace, trained: Sequence[Dataset]) -> dict[str, list[_Part]]:
    shares = dict(zip(("train", "valid", "test"), split_shares(args), strict=True))
    parts: dict[str, list[_Part]] = {"train": [], "valid": [], "test": []}
    weights = args.train_data_weights or [1] * len(trained)
    for path, dataset, weight in zip(args.train_data, trained, weights, strict=True):
        for name, indices in split_indices(len(dataset), shares, args.seed).items():  # type: ignore[arg-type]
            is_used = indices and (name != "train" or weight > 0)
            if is_used:
                times = [weight * _repeats(dataset, index) if name == "train" else 1 for index in indices]
                parts[name].append(_Part(path, dataset, indices, np.asarray(times, dtype=np.int64)))
    if not parts["train"]:
        raise UserError(
            f"split {args.split!r} leaves no sample to train on in {args.train_data} (args.split), or the weights do "
            "(args.train_data_weights)"
        )
    return parts


def _repeats(dataset: Dataset, index: int) -> int:
    return dataset.repeats(index) if isinstance(dataset, DrawnDataset) else 1


def split_shares(args: argparse.Namespace) -> list[float]:
    """The shares of training, validation and test data in `--split`, as SAT reads it; they sum to 1."""
    try:
        shares = shares_of(args.split)
    except ValueError as error:
        raise UserError(f"split {error} (args.split)") from None
    if args.valid_data:
        shares[1] = 0.0
    if args.test_data:
        shares[2] = 0.0
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
