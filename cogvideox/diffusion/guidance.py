"""Classifier-free guidance over x̂₀.

# B batch, T latent frames, C channels, H W
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cogvideox.errors import UserError


# Classifier-free guidance (Ho & Salimans 2022, equation 6).
class VanillaCFG:
    """x̂₀ = x̂₀ᵘ + scale·(x̂₀ᶜ − x̂₀ᵘ) with one scale for all steps."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def scale_at(self, t: int, scale: float | None = None, num_steps: int | None = None) -> float:  # noqa: ARG002
        """The scale at timestep `t`; `scale` replaces the configured one."""
        return self.scale if scale is None else scale

    def __call__(self, x0_both: Tensor, t: int, scale: float | None = None, num_steps: int | None = None) -> Tensor:
        """x̂₀ (B,…) from `x0_both` (2B,…), the unconditional half first."""
        x0_uncond, x0_cond = x0_both.chunk(2)
        return x0_uncond + self.scale_at(t, scale, num_steps) * (x0_cond - x0_uncond)


class DynamicCFG(VanillaCFG):
    """CFG whose scale follows a cosine of the timestep: 1 + s·(1 − cos(π·((n − t)/n)^exp))/2.

    n is the number of sampling steps and t the timestep, 0 to 999, as in the published models: (n − t)/n is mostly
    below 0. `scale_at` takes n from its caller where a sampling run has another number of steps than the config says.
    """

    def __init__(self, scale: float, exp: float, num_steps: int) -> None:
        super().__init__(scale)
        if exp != int(exp):
            raise UserError(
                f"guider exp is {exp}: it must be a whole number, since (n − t)/n is below 0 for most timesteps"
            )
        self.exp = int(exp)
        self.num_steps = num_steps

    def scale_at(self, t: int, scale: float | None = None, num_steps: int | None = None) -> float:
        s = self.scale if scale is None else scale
        n = self.num_steps if num_steps is None else num_steps
        return 1 + s * (1 - math.cos(math.pi * ((n - t) / n) ** self.exp)) / 2


def doubled(uncond: Mapping[str, Any], cond: Mapping[str, Any]) -> dict[str, Any]:
    """One conditioning for a batch of 2B, unconditional half first. What is no tensor must be the same in both."""
    assert uncond.keys() == cond.keys(), f"conditioning has {sorted(cond)}, unconditional {sorted(uncond)}"
    both: dict[str, Any] = {}
    for key, value in cond.items():
        if isinstance(value, Tensor):
            both[key] = torch.cat([uncond[key], value])
        else:
            assert uncond[key] == value, f"conditioning `{key}` differs between the halves and is no tensor"
            both[key] = value
    return both
