"""What the network's output means: v-prediction at a discrete noise level.

# B batch, T latent frames, C channels, H W
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cogvideox.config import instantiate
from cogvideox.diffusion.schedule import ScheduleTable

Conditioning = Mapping[str, Any]


class Network(Protocol):
    """`x` (B,T,C,H,W) at timestep `t` (B,) with conditioning → v (B,T,C,H,W)."""

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning, /, **model_inputs: Any) -> Tensor: ...


# v-prediction (Salimans & Ho 2022, appendix D): x̂₀ = √ᾱ·x − √(1−ᾱ)·v.
class VideoScaling:
    """The factors of x̂₀ = c_skip·x + c_out·network(c_in·x, c_noise) for a network that predicts v."""

    def __init__(self) -> None:
        pass

    def __call__(self, sqrt_alpha_bar: Tensor, idx: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in in the shape of `sqrt_alpha_bar`, and c_noise = the timestep in the shape of `idx`."""
        return sqrt_alpha_bar, -((1 - sqrt_alpha_bar**2) ** 0.5), torch.ones_like(sqrt_alpha_bar), idx


class EpsWeighting:
    """1/σ². Old configs name it and the video loss never asks for it; it is here so that its name resolves."""

    def __init__(self) -> None:
        pass

    def __call__(self, sigma: Tensor) -> Tensor:
        return sigma**-2.0


class DiscreteDenoiser(nn.Module):
    """Turns a network that predicts v into one that predicts x₀, at the noise levels of training.

    `quantize_c_noise` rounds the timestep that the network is told to a whole number.
    """

    def __init__(
        self,
        num_idx: int,
        scaling_config: Mapping[str, Any],
        discretization_config: Mapping[str, Any],
        quantize_c_noise: bool = False,
        do_append_zero: bool = False,
        flip: bool = True,
    ) -> None:
        super().__init__()
        self.scaling = instantiate(scaling_config)
        self.schedule = ScheduleTable(discretization_config, num_idx, do_append_zero, flip)
        self.quantize_c_noise = quantize_c_noise

    def forward(
        self,
        network: Network,
        x: Tensor,
        sqrt_alpha_bar: Tensor,
        cond: Conditioning,
        idx: Tensor | None = None,
        **model_inputs: Any,
    ) -> Tensor:
        """x̂₀ (B,T,C,H,W), float32 or wider, of the noisy `x` at level `sqrt_alpha_bar` (B,).

        The level is taken to the nearest of training. `idx` (B,) is the timestep to tell the network, by default that
        level's.
        """
        t = self.schedule.nearest(sqrt_alpha_bar)
        level = self.schedule(t)
        c_skip, c_out, _, _ = self._scale(level, t, x)
        v = self.predict_v(network, x, level, cond, t if idx is None else idx, **model_inputs)
        return c_skip * x + c_out * v

    def predict_v(
        self,
        network: Network,
        x: Tensor,
        sqrt_alpha_bar: Tensor,
        cond: Conditioning,
        idx: Tensor,
        **model_inputs: Any,
    ) -> Tensor:
        """The network's v like `x` but float32 or wider; `sqrt_alpha_bar` (B,) is the level of `idx` (B,)."""
        _, _, c_in, c_noise = self._scale(sqrt_alpha_bar, idx, x)
        v = network(x * c_in, c_noise, cond, **model_inputs)
        return v.to(torch.promote_types(v.dtype, torch.float32))

    def _scale(self, sqrt_alpha_bar: Tensor, idx: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t = idx.round().long() if self.quantize_c_noise else idx
        return self.scaling(over_dims(sqrt_alpha_bar, x), t)


def over_dims(per_sample: Tensor, x: Tensor) -> Tensor:
    """`per_sample` (B,) → (B,1,…,1) with as many dimensions as `x`."""
    return per_sample.reshape(-1, *[1] * (x.ndim - 1))
