"""Noise that each sample of a batch draws for itself, so that a clip does not depend on what it is drawn with.

# B batch
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def generator_of(*numbers: int) -> torch.Generator:
    """A generator that some numbers of at least 0 decide, on the CPU, so that it draws the same for every device."""
    high, low = np.random.SeedSequence(numbers).generate_state(2, np.uint32).tolist()
    return torch.Generator().manual_seed(high << 32 | low)


class NoiseOfSamples:
    """Standard normal noise like a tensor (B,…): row i comes from a generator that `seeds[i]`, some numbers, decide."""

    def __init__(self, seeds: Sequence[Sequence[int]]) -> None:
        self._generators = [generator_of(*numbers) for numbers in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        assert len(like) == len(self._generators)
        rows = [torch.randn(like.shape[1:], generator=generator) for generator in self._generators]
        return torch.stack(rows).to(like.device, like.dtype)
