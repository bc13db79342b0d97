"""Truths: an order is a function of (seed, epoch, index); an epoch has each sample once on any number of ranks."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogvideox.data.order import Draw, Order, RankBatches
from cogvideox.data.stream_order import StreamBatches

BUCKETS = [0, 1, 0, 2, 1, 0, 0, 2, 1, 0, 0]


def stream(order: Order, steps: int) -> list[Draw]:
    return [draw for number in range(steps) for draw in order.step(number)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 7), st.integers(1, 2**40))
@settings(max_examples=60, deadline=None)
def test_each_buckets_stream_has_every_sample_once_an_epoch(buckets: list[int], per_step: int, seed: int) -> None:
    """Invariant: nothing is left out, nothing comes twice, no step mixes buckets."""
    order = Order(buckets, per_step, seed)
    steps = -(-3 * len(buckets) // per_step)
    draws = [order.step(number) for number in range(steps)]
    assert all(len({buckets[draw.sample] for draw in step}) == 1 for step in draws)
    for bucket in set(buckets):
        own = [draw for step in draws for draw in step if buckets[draw.sample] == bucket]
        for start in range(0, len(own), buckets.count(bucket)):
            epoch = own[start : start + buckets.count(bucket)]
            assert len({draw.sample for draw in epoch}) == len(epoch) and len({draw.epoch for draw in epoch}) == 1
        assert order.taken(steps)[bucket] == len(own)


def test_one_bucket_is_one_permutation_after_another() -> None:
    draws = stream(Order([0] * 10, 4, seed=3), 5)
    epochs = [[draw.sample for draw in draws if draw.epoch == epoch] for epoch in (0, 1)]
    assert [sorted(each) for each in epochs] == [list(range(10))] * 2 and epochs[0] != epochs[1]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_deal_out_one_order(ranks: int) -> None:
    """Identity: the steps of one rank with a batch of 6, cut into as many parts."""
    alone = RankBatches(BUCKETS, 6, 0, 1, seed=5)
    dealt = [RankBatches(BUCKETS, 6 // ranks, rank, ranks, seed=5) for rank in range(ranks)]
    for whole, parts in islice(zip(alone, zip(*dealt, strict=True), strict=True), 30):
        assert whole == [draw for part in parts for draw in part]


def test_draws_differ_between_samples_and_epochs_and_seeds() -> None:
    numbers = [Draw(index, epoch, seed).rng().random() for index in (0, 1) for epoch in (0, 1) for seed in (0, 1)]
    assert len(set(numbers)) == 8 and Draw(1, 1, 1).rng().random() == numbers[-1]


def test_a_resumed_order_goes_on_in_the_middle_of_an_epoch() -> None:
    whole = RankBatches(BUCKETS, 2, 0, 1, seed=7)
    expected = list(islice(whole, 40))
    state = whole.state(13)
    resumed = RankBatches(BUCKETS, 2, 0, 1, seed=7)
    assert resumed.restore(state)
    assert list(islice(resumed, 27)) == expected[13:]
    again = RankBatches(BUCKETS, 2, 0, 1, seed=7)
    assert again.restore(resumed.state(20)) and list(islice(again, 20)) == expected[20:]


@pytest.mark.parametrize(("first", "then"), [(2, 3), (3, 2), (1, 4), (4, 1)])
def test_an_epoch_is_exact_when_the_number_of_ranks_changes_in_it(first: int, then: int) -> None:
    """Invariant: what was taken before and what comes after make whole epochs, by the multiset."""
    buckets = [0] * 17 + [1] * 8
    before = [RankBatches(buckets, 1, rank, first, seed=11) for rank in range(first)]
    after = [RankBatches(buckets, 1, rank, then, seed=11) for rank in range(then)]
    done = 13 // first
    taken = [draw for number in range(done) for each in before for draw in each.batch(number)]
    for each in after:
        assert each.restore(before[0].state(done))
    steps = 60
    taken += [draw for number in range(steps) for each in after for draw in each.batch(number)]
    counts = Counter((draw.epoch, draw.sample) for draw in taken)
    assert set(counts.values()) == {1}
    for bucket in (0, 1):
        own = [index for index, each in enumerate(buckets) if each == bucket]
        epochs = {epoch for epoch, index in counts if index in own}
        for epoch in sorted(epochs)[:-1]:
            assert {index for each, index in counts if each == epoch and index in own} == set(own)
    state = after[0].state(done + steps)  # and once more, on the first number
    once_more = RankBatches(buckets, 1, 0, first, seed=11)
    assert once_more.restore(state) and once_more.order.taken(0) == after[0].order.taken(steps)


NAMES = [f"{number}.mp4" for number in range(len(BUCKETS))]


def test_other_data_does_not_take_the_place() -> None:
    """Invariant: only the same clips, sizes, repeats and seed go on; of as many others, also of shards, none does."""
    ones = [1] * len(BUCKETS)
    before = RankBatches(BUCKETS, 2, 0, 1, seed=1, counts=ones, names=NAMES)
    state = before.state(3)
    assert RankBatches(BUCKETS, 3, 0, 2, seed=1, names=NAMES).restore(state)
    others = [
        RankBatches(BUCKETS[1:], 2, 0, 1, seed=1, names=NAMES[1:]),
        RankBatches(BUCKETS, 2, 0, 1, seed=1, names=NAMES[::-1]),
        RankBatches(BUCKETS[::-1], 2, 0, 1, seed=1, names=NAMES),
        RankBatches(BUCKETS, 2, 0, 1, seed=2, names=NAMES),
        RankBatches(BUCKETS, 2, 0, 1, seed=1, names=NAMES, counts=[2, 0, *ones[2:]]),
    ]
    assert not any(other.restore(state) for other in others) and others[0].start == 3
    shards = StreamBatches(BUCKETS, 4, 2, 0, 1, 1, names=NAMES)
    assert not before.restore(shards.state(3)) and not shards.restore(state)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=20), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_what_counts_often_comes_as_often(samples: list[tuple[int, int]], per_step: int) -> None:
    """Invariant: each repeat has a number of its own, which comes once an epoch; a bucket keeps its numbers."""
    buckets, counts = zip(*samples, strict=True)
    order = Order(buckets, per_step, 5, counts=counts)
    bucket_of = [bucket for bucket, count in samples for _ in range(count)]
    draws = stream(order, -(-3 * sum(counts) // per_step))
    for bucket in set(buckets):
        own = [draw for draw in draws if bucket_of[draw.sample] == bucket]
        size = bucket_of.count(bucket)
        for start in range(0, len(own) - size + 1, size):
            epoch = own[start : start + size]
            assert len({draw.sample for draw in epoch}) == size and len({draw.epoch for draw in epoch}) == 1


def test_repeats_lie_evenly_in_an_epoch() -> None:
    """Invariant: any n rounds of what comes in every round have n of its repeats; a count of its own is not a place."""
    draws = [draw.sample for draw in stream(Order([0] * 8, 1, 5, counts=[4, 4, 4, 4, 1, 1, 1, 1]), 20)]
    places = [[at for at, sample in enumerate(draws) if sample // 4 == number] for number in range(4)]
    assert all(max(np.diff(each)) <= 4 + 4 + 3 for each in places)
    rare = {tuple(at for at, each in enumerate(stream(Order([0] * 9, 1, seed, counts=[9] * 8 + [1]), 73))
                  if each.sample == 72) for seed in range(8)}  # fmt: skip
    assert len(rare) > 4


def test_a_billion_repeats_take_no_room() -> None:
    """Invariant: 1e9 numbers of an epoch, in memory for their 1000 samples, also where a run goes on in the middle."""
    counts = [10**6] * 999 + [1]
    tracemalloc.start()
    batches = RankBatches([0] * 1000, 8, 0, 1, seed=1, counts=counts)
    state = batches.state(50_000_000)
    assert batches.restore(state)
    numbers = [draw.sample for step in islice(batches, 50) for draw in step]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batches.order.samples == 999 * 10**6 + 1 and len(set(numbers)) == 400
    assert peak < 2**20
