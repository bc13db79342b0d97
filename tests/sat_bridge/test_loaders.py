"""Truths: each sample once an epoch on any number of ranks, the seed decides, evaluations weigh every sample once."""

from __future__ import annotations

import argparse
from collections import Counter

import pytest
from torch.utils.data import Dataset

from cogvideox.errors import UserError
from cogvideox.parallel import Group
from cogvideox.sat_bridge import loaders
from cogvideox.sat_bridge.loaders import EpochBatches, EvaluationLoader


class Numbers(Dataset):
    def __init__(self, count: int, first: int = 0) -> None:
        self.values = list(range(first, first + count))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> int:
        return self.values[index]


def arguments(**changes: object) -> argparse.Namespace:
    values = {
        "train_data": ["10"],
        "train_data_weights": None,
        "valid_data": None,
        "test_data": None,
        "split": "1,0,0",
        "seed": 7,
        "batch_size": 2,
        "eval_batch_size": None,
        "gradient_accumulation_steps": 1,
        "epochs": None,
        "num_workers": 0,
        "prefetch_factor": 2,
    }
    return argparse.Namespace(**(values | changes))


def create(path: str, args: argparse.Namespace) -> Numbers:
    count, _, first = path.partition("@")
    return Numbers(int(count), int(first or 0))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_an_epoch_is_every_sample_once_on_any_number_of_ranks(ranks: int) -> None:
    samplers = [EpochBatches(60, 2, Group(rank, ranks), seed=1) for rank in range(ranks)]
    seen = [index for number in range(60 // (2 * ranks)) for sampler in samplers for index in sampler.batch(number)]
    assert Counter(seen) == Counter(range(60))


def test_the_common_stream_does_not_depend_on_the_number_of_ranks() -> None:
    one = EpochBatches(12, 6, Group(0, 1), seed=3)
    three = [EpochBatches(12, 2, Group(rank, 3), seed=3) for rank in range(3)]
    assert one.batch(0) == [index for sampler in three for index in sampler.batch(0)]


def test_epochs_and_seeds_give_other_orders_and_a_batch_is_known_by_its_number() -> None:
    sampler = EpochBatches(50, 50, Group(), seed=1)
    assert sampler.batch(0) != sampler.batch(1)
    assert sampler.batch(0) != EpochBatches(50, 50, Group(), seed=2).batch(0)
    assert EpochBatches(50, 50, Group(), seed=1).batch(1) == sampler.batch(1)


def test_starting_at_an_iteration_continues_the_stream_with_accumulation_counted() -> None:
    train, _, _ = loaders.make_loaders(arguments(gradient_accumulation_steps=2), create)
    assert train is not None
    expected = [train.batch_sampler.batch(number) for number in (6, 7)]
    train.start_at(3)
    iterator = iter(train)
    assert [next(iterator).tolist() for _ in range(2)] == expected


def test_length_is_the_iterations_of_all_epochs() -> None:
    train, _, _ = loaders.make_loaders(arguments(epochs=3, gradient_accumulation_steps=2), create)
    assert train is not None and len(train) == 8  # 30 samples, 4 an iteration


def test_weights_repeat_a_data_set() -> None:
    train, _, _ = loaders.make_loaders(arguments(train_data=["4", "2@100"], train_data_weights=[1, 3]), create)
    assert train is not None
    counts = Counter(train.dataset[index] for index in range(len(train.dataset)))  # type: ignore[arg-type]
    assert counts == {0: 1, 1: 1, 2: 1, 3: 1, 100: 3, 101: 3}


def test_splits_are_disjoint_complete_and_seeded() -> None:
    shares = {"train": 0.8, "valid": 0.1, "test": 0.1}
    parts = loaders.split_indices(50, shares, seed=1)
    assert sorted(sum(parts.values(), [])) == list(range(50))
    assert (len(parts["train"]), len(parts["valid"]), len(parts["test"])) == (40, 5, 5)
    assert loaders.split_indices(50, shares, seed=2) != parts
    assert loaders.split_indices(50, shares, seed=1) == parts


def test_valid_data_of_its_own_turns_the_validation_share_off() -> None:
    args = arguments(split="8,1,1", valid_data=["3@50"])
    assert loaders.split_shares(args) == pytest.approx([8 / 9, 0, 1 / 9])


@pytest.mark.parametrize("split", ["0,1,0", "-1,1,0"])
def test_a_split_without_training_data_is_refused(split: str) -> None:
    with pytest.raises(UserError, match="args.split"):
        loaders.split_shares(arguments(split=split))


@pytest.mark.parametrize(("samples", "ranks", "batch"), [(7, 1, 3), (7, 2, 2), (2, 3, 2), (12, 3, 2)])
def test_evaluation_counts_every_sample_once_and_ranks_have_equally_many_batches(
    samples: int, ranks: int, batch: int
) -> None:
    dealt = [EvaluationLoader(Numbers(samples), batch, Group(rank, ranks), arguments(), None) for rank in range(ranks)]
    assert len({len(loader) for loader in dealt}) == 1
    counted: Counter[int] = Counter()
    for loader in dealt:
        for number, values in enumerate(loader):
            counted.update(values.tolist()[: loader.weight_of(number)])
            assert loader.weight_of(number) in (0, len(values))
    assert counted == Counter(range(samples))


def test_every_evaluation_starts_at_the_beginning() -> None:
    loader = EvaluationLoader(Numbers(5), 2, Group(), arguments(), None)
    assert [next(iter(loader)).tolist() for _ in range(2)] == [[0, 1], [0, 1]]


class Failing(Numbers):
    def __getitem__(self, index: int) -> int:
        raise UserError("more than half of the clips\ndo not decode")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_that_a_worker_finds_is_told_without_its_traceback(workers: int) -> None:
    train, _, _ = loaders.make_loaders(arguments(num_workers=workers), lambda *_: Failing(4))
    assert train is not None
    with pytest.raises(UserError) as caught:
        next(iter(train))
    assert str(caught.value) == "more than half of the clips\ndo not decode"
