"""Losses that stand out. Truth: none of noise as diffusion losses have it, and every one of several times the mean."""

from __future__ import annotations

import math
import random

import pytest

from cogvideox.sat_bridge.loss_spikes import WARM_UP, LossSpikes


def losses(number: int, samples: int, seed: int = 0) -> list[float]:
    """Means over `samples`, high where t is near to its ends, and falling while a run begins."""
    rng = random.Random(seed)

    def one(at: int) -> float:
        shape = 0.05 + 0.95 * abs(2 * rng.random() - 1) ** 3
        return shape * math.exp(rng.gauss(0, 0.25)) * (1 + 5 * math.exp(-at / 300))

    return [sum(one(at) for _ in range(samples)) / samples for at in range(number)]


@pytest.mark.parametrize("samples", [1, 16])
def test_noise_is_no_spike_and_spikes_are(samples: int) -> None:
    spikes = LossSpikes()
    assert not any(spikes.is_spike(loss) for loss in losses(5000, samples))
    assert all(spikes.is_spike(factor * spikes.mean) for factor in (20, 12, 12))
    assert not any(spikes.is_spike(loss) for loss in losses(5000, samples, seed=1)[-100:])


def test_nothing_is_a_spike_before_there_is_something_to_compare_with() -> None:
    spikes = LossSpikes()
    assert not any(spikes.is_spike(10.0 if at == 50 else 1.0) for at in range(WARM_UP))


def test_losses_that_stay_high_are_no_spikes_for_long() -> None:
    spikes = LossSpikes()
    for loss in losses(1000, 16):
        spikes.is_spike(loss)
    found = [spikes.is_spike(2.0) for _ in range(500)]
    assert found[0] and not any(found[100:])


def test_a_restored_one_goes_on_alike() -> None:
    one, other = LossSpikes(), LossSpikes()
    every = [*losses(300, 1), 30.0, *losses(50, 1, seed=2), 9.0]
    for loss in every[:150]:
        one.is_spike(loss)
    other.restore(one.state())
    rest = [one.is_spike(loss) for loss in every[150:]]
    assert any(rest) and rest == [other.is_spike(loss) for loss in every[150:]]
