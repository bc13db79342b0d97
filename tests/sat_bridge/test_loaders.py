"""Truths: each sample once an epoch on any number of ranks, the seed decides, evaluations weigh every sample once."""

from __future__ import annotations

import argparse
import os
import signal
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from cogvideox.data.clips import Clip
from cogvideox.data.mixture import REPLACED, DrawnDataset, Mixture
from cogvideox.data.order import Draw
from cogvideox.data.records import Record
from cogvideox.data.sampling import UsableSpan
from cogvideox.errors import UserError
from cogvideox.parallel import Group
from cogvideox.sat_bridge import loaders
from cogvideox.sat_bridge.loaders import EvaluationLoader


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


def test_starting_at_an_iteration_continues_the_stream_with_accumulation_counted() -> None:
    train, _, _ = loaders.make_loaders(arguments(gradient_accumulation_steps=2), create)
    assert train is not None
    expected = [[draw.sample for draw in train.batch_sampler.batch(number)] for number in (6, 7)]
    state = train.state(3)
    train.start_at(3)
    iterator = iter(train)
    assert [next(iterator).tolist() for _ in range(2)] == expected
    resumed, _, _ = loaders.make_loaders(arguments(gradient_accumulation_steps=2), create)
    assert resumed is not None and resumed.start_at(3, state=state)
    assert next(iter(resumed)).tolist() == expected[0] and resumed.state(3)["steps"] == 6
    other, _, _ = loaders.make_loaders(arguments(train_data=["11"]), create)
    assert other is not None and not other.start_at(3, state=state)


RUNS = [((1, 2), (1, 4), (1, 1)), ((1, 4), (2, 2), (1, 4)), ((2, 1), (1, 3), (3, 2)), ((3, 3), (1, 1), (2, 4))]
"""(batch, accumulation) of a run and of what it was resumed with, twice."""


@pytest.mark.parametrize("runs", RUNS)
def test_batch_and_accumulation_may_change_at_each_resumption(runs: tuple[tuple[int, int], ...]) -> None:
    """Identity: run, saved and resumed twice, with dropped batches: the samples of one run of single samples."""
    given: list[int] = []
    state, iteration, skipped = None, 0, 0
    for batch_size, accumulation in runs:
        args = arguments(batch_size=batch_size, gradient_accumulation_steps=accumulation)
        train, _, _ = loaders.make_loaders(args, create)
        assert train is not None and train.start_at(iteration, skipped, state)
        batches = islice(iter(train), 12 * accumulation + 1)
        given += [number for batch in batches for number in batch.tolist()]
        iteration, skipped = iteration + 12, skipped + 1
        state = train.state(iteration, skipped)
    assert state is not None and state["steps"] == sum(12 * accumulation + 1 for _, accumulation in runs)
    alone, _, _ = loaders.make_loaders(arguments(batch_size=1), create)
    assert alone is not None
    assert given == [batch.item() for batch in islice(iter(alone), len(given))]


class Named(Numbers):
    """Of a folder whose files are called `names`."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(len(names))
        span = UsableSpan(0.0, 1.0, 0.1)
        self.clips = [Clip(Record(Path("data", name), name, "a caption"), span, 0, 1, 1) for name in names]


def test_as_many_other_clips_are_other_data() -> None:
    """Invariant: the order goes on with the same names in the same place of the order only."""
    first, _, _ = loaders.make_loaders(arguments(), lambda *_: Named("abcd"))
    assert first is not None
    state = first.state(3)
    for names, is_same in (("abcd", True), ("abce", False), ("bacd", False)):
        train, _, _ = loaders.make_loaders(arguments(), lambda *_, names=names: Named(names))  # type: ignore[misc]
        assert train is not None and train.start_at(3, 0, state) is is_same
    moved, _, _ = loaders.make_loaders(arguments(train_data=["elsewhere"]), lambda *_: Named("abcd"))
    assert moved is not None and moved.start_at(3, 0, state)


def test_length_is_the_iterations_of_all_epochs() -> None:
    train, _, _ = loaders.make_loaders(arguments(epochs=3, gradient_accumulation_steps=2), create)
    assert train is not None and len(train) == 8  # 30 samples, 4 an iteration


def test_weights_repeat_a_data_set() -> None:
    train, _, _ = loaders.make_loaders(arguments(train_data=["4", "2@100"], train_data_weights=[1, 3]), create)
    assert train is not None
    counts: Counter[Any] = Counter(train.dataset[Draw(index, 0, 1)] for index in range(len(train.dataset)))
    assert counts == {0: 1, 1: 1, 2: 1, 3: 1, 100: 3, 101: 3}


def test_weights_take_no_room_of_their_own() -> None:
    """Invariant: a billion repeats are trained on as they come, and are a sample's share of every stretch."""
    args = arguments(train_data=["4", "2@100"], train_data_weights=[1, 500_000_000])
    train, _, _ = loaders.make_loaders(args, create)
    assert train is not None and train.samples == 1_000_000_004 and train.clips == 6
    assert sorted(number for batch in islice(iter(train), 20) for number in batch.tolist()) == [100] * 20 + [101] * 20
    only, _, _ = loaders.make_loaders(arguments(train_data=["4", "2@100"], train_data_weights=[0, 2]), create)
    assert only is not None and only.samples == 4
    with pytest.raises(UserError, match="args.train_data_weights"):
        loaders.make_loaders(arguments(train_data=["4"], train_data_weights=[0]), create)


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


@pytest.mark.parametrize("split", ["0,1,0", "-1,1,0", "90,5,x"])
def test_a_split_without_training_data_is_refused(split: str) -> None:
    with pytest.raises(UserError, match="args.split"):
        loaders.split_shares(arguments(split=split))


@pytest.mark.parametrize(("samples", "ranks", "batch"), [(7, 1, 3), (7, 2, 2), (2, 3, 2), (12, 3, 2)])
def test_evaluation_counts_every_sample_once_and_ranks_have_equally_many_batches(
    samples: int, ranks: int, batch: int
) -> None:
    dealt = [
        EvaluationLoader(Mixture([(Numbers(samples), range(samples))]), batch, Group(rank, ranks), arguments(), None)
        for rank in range(ranks)
    ]
    assert len({len(loader) for loader in dealt}) == 1
    counted: Counter[int] = Counter()
    for loader in dealt:
        for number, values in enumerate(loader):
            counted.update(values.tolist()[: loader.weight_of(number)])
            assert loader.weight_of(number) in (0, len(values))
    assert counted == Counter(range(samples))


def test_every_evaluation_starts_at_the_beginning() -> None:
    loader = EvaluationLoader(Mixture([(Numbers(5), range(5))]), 2, Group(), arguments(), None)
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


class Sized(DrawnDataset):
    """Samples of two sizes that say where they are from and what was drawn; every third is stood in for."""

    def __len__(self) -> int:
        return 9

    def sample(self, index: int, rng: Any) -> dict[str, Any]:
        stands_in = {REPLACED: [(f"{index - 1}.mp4", "do not decode", "is damaged")]} if index % 3 == 2 else {}
        return {"index": index, "drawn": float(rng.random()), **stands_in}

    def bucket_of(self, index: int) -> int:
        return index % 2

    def repeats(self, index: int) -> int:
        return 3 if index == 4 else 1


def test_draws_and_sizes_reach_the_samples_whatever_the_workers() -> None:
    """Identity: 0, 1 and 4 workers; a batch has one size; a sample that counts thrice comes thrice."""
    made = []
    for workers in (0, 1, 4):
        train, valid, _ = loaders.make_loaders(arguments(num_workers=workers), lambda *_: Sized())
        assert train is not None and valid is None
        iterator = iter(train)
        made.append([next(iterator) for _ in range(11)])
        assert set(train.replaced) == {"1.mp4", "4.mp4", "7.mp4"} and len(train.new_replaced) == 3
    for batches in zip(*made, strict=True):
        assert all(torch.equal(batches[0]["drawn"], other["drawn"]) for other in batches[1:])
        assert len({int(index) % 2 for index in batches[0]["index"]}) == 1
        assert REPLACED not in batches[0]
    epoch = Counter(int(index) for batch in made[0] for index in batch["index"])
    assert epoch[4] == 6 and set(epoch.values()) == {2, 6}  # two epochs of 11


@pytest.mark.parametrize(("places", "told", "clips"), [(["a"], 3, 9), (["a", "b"], 6, 18), (["a", "a"], 3, 9)])
def test_clips_of_one_name_in_two_places_are_two(places: list[str], told: int, clips: int) -> None:
    """Golden values: three of nine clips in each place are stood in for; repeats are no clips of their own."""
    train, valid, _ = loaders.make_loaders(arguments(train_data=places, valid_data=["c"]), lambda *_: Sized())
    assert train is not None and train.samples == 11 * len(places) and train.clips == clips
    list(islice(iter(train), 12 * len(places)))
    assert len(train.new_replaced) == told
    assert {name for name, _, _ in train.new_replaced} >= ({"1.mp4"} if told == 3 else {"a: 1.mp4", "b: 1.mp4"})
    assert valid is not None and len(list(valid)) == 5 and len(valid.new_replaced) == 3


def test_evaluations_do_not_mix_sizes_and_draw_alike_each_time() -> None:
    loader = EvaluationLoader(Mixture([(Sized(), range(9))]), 2, Group(), arguments(), None)
    first, second = list(loader), list(loader)
    assert [batch["index"].tolist() for batch in first] == [[0, 2], [4, 6], [8], [1, 3], [5, 7]]
    assert all(torch.equal(a["drawn"], b["drawn"]) for a, b in zip(first, second, strict=True))


class Dying(Numbers):
    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_dies_is_said_to_have_died() -> None:
    train, _, _ = loaders.make_loaders(arguments(num_workers=1), lambda *_: Dying(4))
    assert train is not None
    with pytest.raises(UserError, match=r"has died(.|\n)*--num-workers"):
        next(iter(train))
