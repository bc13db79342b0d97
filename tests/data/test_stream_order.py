"""Truths: the order of a stream is a function of (seed, epoch) and exact on any number of ranks, also when resumed."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogvideox.data.order import Draw
from cogvideox.data.stream_order import StreamBatches, StreamOrder

SIZES = (5, 3, 7, 1, 4)
SHARD_OF = np.repeat(np.arange(len(SIZES)), SIZES)
TOTAL = sum(SIZES)


def steps_of(ranks: int, batch_size: int, steps: int, state: dict | None = None, **other: int) -> list[list[Draw]]:
    """The draws of all ranks in each of `steps` steps."""
    parts = []
    for rank in range(ranks):
        batches = StreamBatches(SHARD_OF, other.get("window", 6), batch_size, rank, ranks, other.get("seed", 3))
        if state is not None:
            assert batches.restore(state)
        parts.append(list(islice(batches, steps)))
    return [[draw for part in step for draw in part] for step in zip(*parts, strict=True)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 30), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_each_epoch_has_every_sample_once(sizes: list[int], window: int, per_step: int, seed: int) -> None:
    """Invariant, for any shards, windows and steps."""
    shard_of, total = np.repeat(np.arange(len(sizes)), sizes), sum(sizes)
    order = StreamOrder(shard_of, window, per_step, seed)
    draws = [draw for number in range(-(-2 * total // per_step)) for draw in order.step(number)]
    for epoch in (0, 1):
        assert sorted(draw.sample for draw in draws if draw.epoch == epoch)[:total] == list(range(total))


def test_window_of_one_keeps_shards_whole_and_in_order() -> None:
    """Identity: only shards are permuted."""
    draws = [draw.sample for draw in StreamOrder(SHARD_OF, 1, TOTAL, seed=1).step(0)]
    shards = [int(SHARD_OF[sample]) for sample in draws]
    turns = [shard for place, shard in enumerate(shards) if place == 0 or shards[place - 1] != shard]
    assert sorted(turns) == list(range(len(SIZES))) and turns != sorted(turns)
    assert draws == [sample for shard in turns for sample in np.flatnonzero(SHARD_OF == shard)]


def test_samples_stay_in_their_window() -> None:
    """Invariant: a window of the shuffled order has the samples of the same window without shuffling."""
    plain, shuffled = (
        [draw.sample for draw in StreamOrder(SHARD_OF, window, TOTAL, seed=1).step(0)] for window in (1, 6)
    )
    windows = range(0, TOTAL, 6)
    assert all(sorted(plain[at : at + 6]) == sorted(shuffled[at : at + 6]) for at in windows) and plain != shuffled


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_deal_out_one_order(ranks: int) -> None:
    """Identity: the steps of one rank with a batch of 6."""
    assert steps_of(ranks, 6 // ranks, 10) == steps_of(1, 6, 10)


@pytest.mark.parametrize("seed, window", [(4, 6), (3, 5)])
def test_another_seed_or_window_is_another_order(seed: int, window: int) -> None:
    assert steps_of(1, 6, 4, seed=seed, window=window) != steps_of(1, 6, 4)


@pytest.mark.parametrize("steps", [0, 2, 5, 9])
@pytest.mark.parametrize("before, after", [((2, 2), (3, 1)), ((3, 1), (1, 2)), ((1, 5), (2, 2))])
def test_resumed_on_other_ranks_the_rest_of_the_epoch_comes(
    before: tuple[int, int], after: tuple[int, int], steps: int
) -> None:
    """Invariant: the multisets of both runs' epochs are whole; resumed twice too."""
    first = StreamBatches(SHARD_OF, 6, before[1], 0, before[0], 3)
    state = first.state(steps)
    drawn = [draw for step in steps_of(*before, steps) for draw in step]
    assert (state["epoch"], state["given"]) == divmod(len(drawn), TOTAL)
    second = StreamBatches(SHARD_OF, 6, after[1], 0, after[0], 3)
    assert second.restore(state)
    again = second.state(steps + 3)
    drawn += [draw for step in steps_of(*after, 3, state) for draw in step]
    drawn += [draw for step in steps_of(*before, 20, again) for draw in step]
    whole = [epoch for epoch in range(4) if sum(draw.epoch == epoch for draw in drawn) >= TOTAL]
    assert len(whole) >= 2
    for epoch in whole:
        assert Counter(draw.sample for draw in drawn if draw.epoch == epoch) == Counter(range(TOTAL))


NAMES = [f"{number}.mp4" for number in range(TOTAL)]


def test_a_state_of_other_data_is_not_taken() -> None:
    """Invariant: only the same samples, shards, repeats, window and seed go on; as many others do not."""
    state = StreamBatches(SHARD_OF, 6, 2, 0, 1, 3, names=NAMES).state(4)
    assert StreamBatches(SHARD_OF, 6, 3, 0, 2, 3, names=NAMES, counts=[1] * TOTAL).restore(state)
    others = [
        StreamBatches(SHARD_OF[:-1], 6, 2, 0, 1, 3, names=NAMES[:-1]),
        StreamBatches(SHARD_OF, 5, 2, 0, 1, 3, names=NAMES),
        StreamBatches(SHARD_OF, 6, 2, 0, 1, 4, names=NAMES),
        StreamBatches(SHARD_OF, 6, 2, 0, 1, 3, names=NAMES[::-1]),
        StreamBatches(SHARD_OF[::-1], 6, 2, 0, 1, 3, names=NAMES),
        StreamBatches(SHARD_OF, 6, 2, 0, 1, 3, names=NAMES, counts=[2] * TOTAL),
    ]
    for other in others:
        assert not other.restore(state) and other.start == 4


def test_counts_are_as_numbers_that_are_listed() -> None:
    """Identity: each sample listed as often as it comes."""
    counts = np.arange(TOTAL) % 4 + 1
    counted = StreamOrder(SHARD_OF, 6, 7, 3, counts=counts)
    listed = StreamOrder(np.repeat(SHARD_OF, counts), 6, 7, 3)
    assert counted.samples == listed.samples == counts.sum()
    assert [counted.step(number) for number in range(20)] == [listed.step(number) for number in range(20)]
