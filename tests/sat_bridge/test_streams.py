"""Truths: shards are trained on exactly once an epoch, the same batches whatever the workers, also after resuming."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

from cogvideox.data.mixture import Mixture
from cogvideox.data.streaming import VideoDataset
from cogvideox.errors import UserError
from cogvideox.parallel import Group
from cogvideox.sat_bridge.loaders import EvaluationLoader
from cogvideox.sat_bridge.streams import IterableLoader, StreamLoader, is_stream, only_iterates
from tests.data.shard_files import clip_bytes, sample, write_shards, write_tar

TOTAL = 11
# (batch, accumulation) of a run and of what it was resumed with, twice.
RUNS = [((1, 2), (1, 4), (1, 1)), ((1, 4), (2, 2), (1, 4)), ((2, 1), (1, 3), (3, 2))]


def arguments(**changes: Any) -> argparse.Namespace:
    values = {
        "batch_size": 1,
        "seed": 7,
        "epochs": None,
        "num_workers": 0,
        "prefetch_factor": 2,
        "gradient_accumulation_steps": 1,
        "iterable_dataset": True,
        "quarantine": None,
    }
    return argparse.Namespace(**(values | changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    folder = write_shards(tmp_path_factory.mktemp("streams") / "shards", (3, 2, 4, 2))
    parameters = {"image_size": [16, 16], "num_frames": 5, "fps": 8, "shuffle_buffer": 4, "window": "random"}
    dataset = VideoDataset.create_dataset_function(str(folder), arguments(), **parameters)
    return Mixture([(dataset, range(len(dataset)))])


def batches_of(data: Mixture, rank: int, ranks: int, count: int, state: Any = None, **changes: Any) -> list[Any]:
    loader = StreamLoader(data, Group(rank, ranks), arguments(**changes))
    if state is not None:
        assert loader.start_at(0, 0, state)
    return list(islice(loader, count))


def captions(batches: list[Any]) -> list[str]:
    return [text for batch in batches for text in batch["txt"]]


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_sample_once_an_epoch(data: Mixture, ranks: int, workers: int) -> None:
    """Invariant: the first 11 samples of the joint stream are the 11 samples, the next too."""
    steps = -(-2 * TOTAL // ranks)
    parts = [captions(batches_of(data, rank, ranks, steps, num_workers=workers)) for rank in range(ranks)]
    joint = [text for step in zip(*parts, strict=True) for text in step]
    alone = captions(batches_of(data, 0, 1, steps * ranks))
    assert joint == alone
    assert all(set(Counter(joint[at : at + TOTAL]).values()) == {1} for at in (0, TOTAL))


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_move_a_pixel(data: Mixture, workers: int) -> None:
    """Identity: tensors with random windows, with and without worker processes."""
    plain, parallel = (batches_of(data, 1, 2, 6, num_workers=number) for number in (0, workers))
    for one, other in zip(plain, parallel, strict=True):
        assert torch.equal(one["mp4"], other["mp4"]) and one["txt"] == other["txt"]
        assert one["mp4"].shape == (1, 5, 3, 16, 16)


def test_windows_differ_between_epochs(data: Mixture) -> None:
    batches = batches_of(data, 0, 1, 3 * TOTAL)
    of_one = [batch["mp4"] for batch in batches if batch["txt"] == [batches[0]["txt"][0]]]
    assert len(of_one) == 3 and not all(torch.equal(of_one[0], other) for other in of_one[1:])


@pytest.mark.parametrize("before, after, workers", [(2, 3, 0), (3, 1, 1), (1, 2, 4)])
def test_resumed_in_the_middle_on_other_ranks(data: Mixture, before: int, after: int, workers: int) -> None:
    """Invariant: what comes after the state is the rest of the epoch; nothing twice, nothing missing."""
    given = [text for rank in range(before) for text in captions(batches_of(data, rank, before, 2))]
    state = StreamLoader(data, Group(0, before), arguments()).state(2)
    assert (state["epoch"], state["given"]) == (0, 2 * before)
    steps = -(-(TOTAL - 2 * before) // after)
    parts = [captions(batches_of(data, rank, after, steps, state, num_workers=workers)) for rank in range(after)]
    rest = [text for step in zip(*parts, strict=True) for text in step][: TOTAL - 2 * before]
    assert Counter(given + rest) == Counter(captions(batches_of(data, 0, 1, TOTAL)))


@pytest.mark.parametrize("runs", RUNS)
def test_batch_and_accumulation_may_change_at_each_resumption(data: Mixture, runs: tuple[tuple[int, int], ...]) -> None:
    """Identity: run, saved and resumed twice, with dropped batches: the order of one run of single samples."""
    given: list[Any] = []
    state, iteration, skipped = None, 0, 0
    for batch_size, accumulation in runs:
        loader = StreamLoader(data, Group(), arguments(batch_size=batch_size, gradient_accumulation_steps=accumulation))
        assert loader.start_at(iteration, skipped, state)
        given += [draw for step in islice(loader.batch_sampler, 5 * accumulation + 1) for draw in step]
        iteration, skipped = iteration + 5, skipped + 1
        state = loader.state(iteration, skipped)
        assert (state["epoch"], state["given"]) == divmod(len(given), TOTAL)
    alone = StreamLoader(data, Group(), arguments()).batch_sampler
    assert given == [draw for step in islice(alone, len(given)) for draw in step]


def test_other_shards_or_another_seed_do_not_go_on(tmp_path: Path) -> None:
    """Invariant: as many samples of other names are other data; where the shards lie does not count."""
    clip = clip_bytes(tmp_path)
    states = []
    for place, names, seed in (("a", "xy", 1), ("b", "xy", 1), ("c", "xz", 1), ("d", "xy", 2)):
        (tmp_path / place).mkdir()
        path = write_tar(tmp_path / place / "0.tar", sample(names[0], clip) | sample(names[1], clip))
        dataset = VideoDataset(str(path), [16, 16], 5, 8, seed=seed)
        states.append((StreamLoader(Mixture([(dataset, range(2))]), Group(), arguments()), place))
    state = states[0][0].state(3)
    assert [place for loader, place in states if loader.start_at(3, 0, state)] == ["a", "b"]


def test_accumulation_and_epochs_count(data: Mixture) -> None:
    """Golden values: 11 samples, twice, at 2 ranks × batch 1 × 2 accumulated."""
    loader = StreamLoader(data, Group(0, 2), arguments(gradient_accumulation_steps=2, epochs=2))
    assert len(loader) == 6 and loader.state(3)["given"] == 12 - TOTAL and loader.state(3)["epoch"] == 1
    assert loader.start_at(3)
    resumed = next(iter(loader))["txt"]
    assert resumed == batches_of(data, 0, 2, 7)[6]["txt"]


def test_replaced_samples_are_told_once(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample("good", clip_bytes(tmp_path)) | sample("bad", b"no video"))
    dataset = VideoDataset(str(path), [16, 16], 5, 8)
    loader = StreamLoader(Mixture([(dataset, range(2))]), Group(0, 1), arguments(num_workers=2))
    assert captions(list(islice(loader, 4))) == ["good"] * 4
    assert [(Path(name).name, kind) for name, kind, _ in loader.new_replaced] == [("bad.mp4", "do not decode")]


def test_parts_keep_their_shards_apart_and_evaluation_reads_them_too(data: Mixture) -> None:
    dataset = data.parts[0][0]
    half = Mixture([(dataset, range(0, TOTAL, 2)), (dataset, range(3))])
    assert is_stream(half)
    names = captions(batches_of(half, 0, 1, 9))
    wanted = [*range(0, TOTAL, 2), *range(3)]
    in_order = captions(list(EvaluationLoader(data, 2, Group(0, 1), arguments(), None)))
    assert len(in_order) == TOTAL and Counter(names) == Counter(in_order[number] for number in wanted)


class Endless(IterableDataset):
    """Gives the numbers below `count`, as somebody's own data set might."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return iter(range(self.count))


def test_ones_own_iterable_begins_anew_and_resumes() -> None:
    """Golden values."""
    assert only_iterates([Endless(5)]) and not only_iterates([])
    loader = IterableLoader(Endless(5), arguments(batch_size=2))
    assert [batch.tolist() for batch in islice(loader, 3)] == [[0, 1], [2, 3], [0, 1]]
    state = loader.state(3)
    assert loader.start_at(3, 0, state)
    assert next(iter(loader)).tolist() == [2, 3]
    resumed = IterableLoader(Endless(5), arguments(batch_size=2, gradient_accumulation_steps=2))
    assert resumed.start_at(3, 0, state) and resumed.state(4)["steps"] == 5
    assert not resumed.start_at(3, 0, {"samples": 5, "per_step": 2, "steps": 3})
    assert list(islice(IterableLoader(Endless(2), arguments(iterable_dataset="custom")), 3)) == [0, 1, 0]
    with pytest.raises(UserError, match="--train-iters"):
        len(loader)
    with pytest.raises(UserError, match="gives no batch"):
        next(iter(IterableLoader(Endless(1), arguments(batch_size=2))))
    with pytest.raises(UserError, match="stands alone"):
        only_iterates([Endless(1), Endless(2)])
