"""Truth: identity (a sample's noise is the same alone and with others, and unlike any other's)."""

from __future__ import annotations

import torch

from cogvideox.diffusion.noise import NoiseOfSamples


def test_noise_is_each_sample_s_own() -> None:
    seeds = [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)]
    together = NoiseOfSamples(seeds)
    twice = [together(torch.empty(4, 3, 5)) for _ in range(2)]
    for row, numbers in enumerate(seeds):
        alone = NoiseOfSamples([numbers])
        for drawn in twice:
            assert torch.equal(alone(torch.empty(1, 3, 5))[0], drawn[row])
    flat = torch.cat([drawn.flatten(1) for drawn in twice])
    assert len({tuple(row.tolist()) for row in flat}) == 8
