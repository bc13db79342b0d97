"""Walks over a loader's batches. Truth: identity with the batches of the steps that remain."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import IterableDataset

from cogvideox.data.mixture import DrawnDataset, Mixture
from cogvideox.data.order import RankBatches
from cogvideox.sat_bridge.numbered import TrainLoader
from cogvideox.sat_bridge.streams import IterableLoader
from cogvideox.sat_bridge.walk import Walk


class Squares(DrawnDataset):
    """Sample `index` is its square and a number drawn for it."""

    def __len__(self) -> int:
        return 7

    def sample(self, index: int, rng: Any) -> dict[str, Any]:
        return {"square": index**2, "drawn": int(rng.integers(1 << 30))}


def loader_of(rank: int, workers: int) -> TrainLoader:
    args = argparse.Namespace(
        gradient_accumulation_steps=2, epochs=None, num_workers=workers, prefetch_factor=2, seed=4
    )
    batches = RankBatches([0] * 7, 2, rank, 2, 4)
    return TrainLoader(Mixture([(Squares(), range(7))]), batches, args, places=["here"])


def drawn(batch: dict[str, Any]) -> list[int]:
    return batch["drawn"].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_is_set_back_while_it_is_iterated_and_passes_over_the_quarantine(workers: int) -> None:
    loader = loader_of(1, workers)
    loader.start_at(0)
    iterator = iter(loader)
    first = []
    for number in range(6):
        assert loader.walk.advance() == (number, 0)
        first.append(drawn(next(iterator)))
    state = loader.state(2)
    loader.walk.quarantined |= {1, 5}
    # Two iterations of two batches each, and one batch that was left out.
    assert loader.start_at(2, 1, loader.state(2, 1))
    loader.start_at(2, 0, state)
    assert (loader.walk.advance(), drawn(next(iterator))) == ((4, 0), first[4])
    assert loader.walk.advance() == (6, 1)
    assert drawn(next(iterator)) == drawn(loader.batch_of(6))
    assert loader.state(3, 1)["steps"] == loader.walk.next
    loader.start_at(0)
    steps = [loader.walk.advance() for _ in range(4)]
    assert steps == [(0, 0), (2, 1), (3, 0), (4, 0)]
    assert [drawn(next(iterator)) for _ in steps] == [first[step] for step, _ in steps]
    assert drawn(loader.batch_of(3)) == first[3]
    assert loader.clips_of(3) == [f"sample {draw.sample}" for draw in loader.batch_sampler.batch(3)]


class Endless(IterableDataset):
    """Numbers, whatever rank asks."""

    def __iter__(self) -> Iterator[dict[str, int]]:
        return iter({"drawn": number} for number in range(8))


def test_a_stream_of_ones_own_is_set_back_by_reading_it_again() -> None:
    args = argparse.Namespace(
        gradient_accumulation_steps=1, batch_size=2, num_workers=0, prefetch_factor=2, seed=4, iterable_dataset=True
    )
    loader = IterableLoader(Endless(), args)
    loader.start_at(0)
    iterator = iter(loader)
    first = []
    for _ in range(5):
        loader.walk.advance()
        first.append(drawn(next(iterator)))
    assert drawn(loader.batch_of(4)) == first[4] and loader.batch_of(3) is None and loader.clips_of(4) == []
    loader.walk.quarantined |= {2}
    loader.start_at(1)
    assert [loader.walk.advance() for _ in range(3)] == [(1, 0), (3, 1), (4, 0)]
    assert [drawn(next(iterator)) for _ in range(3)] == [first[1], first[3], first[4]]


def test_ranks_that_read_nothing_walk_alike() -> None:
    reading, other = Walk(), Walk()
    for walk in (reading, other):
        walk.quarantined = {2, 3}
        walk.set(1)
    given = reading.over(lambda: iter(range(1, 10)))
    for _ in range(4):
        assert reading.advance() == other.advance()
        assert next(given) == reading.next - 1
